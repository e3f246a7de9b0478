"""The contract of `ObjectStore`, checked on every implementation."""

from __future__ import annotations

import base64
import hashlib
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from pydantic import SecretStr

from storage.digests import PartDigest, multipart_etag
from storage.errors import (
    AccessRefusedError,
    BucketMissingError,
    IntegrityError,
    LifecycleUnsupportedError,
    ObjectMissingError,
    PreconditionFailedError,
    StorageError,
    StoreUnavailableError,
)
from storage.lifecycle import LifecycleStatus, inspect, install, remove
from storage.s3 import S3ObjectStore
from storage.store import SignedRequest, Stored
from tests.contract.conftest import Place
from tests.support.s3 import FAST, IMPATIENT, fault_proxy

PART = 5 * 2**20


def digest(data: bytes) -> PartDigest:
    return PartDigest(len(data), hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest())


def send(signed: SignedRequest, data: bytes) -> httpx.Response:
    return httpx.put(signed.url, content=data, headers=dict(signed.headers), trust_env=False, timeout=60)


def fetch(signed: SignedRequest, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.get(signed.url, headers=headers, trust_env=False, timeout=60)


def put_part(place: Place, key: str, upload_id: str, number: int, data: bytes) -> str:
    known = digest(data)
    signed = place.store.presign_part(
        key, upload_id, number, content_md5=known.content_md5, size_bytes=len(data), ttl_s=60
    )
    response = send(signed, data)
    assert response.status_code == 200, response.text
    return response.headers["ETag"].strip('"')


def test_an_object_is_read_back_with_its_etag(any_place: Place) -> None:
    key = any_place.key("a")
    etag = any_place.store.put(key, b"hello")
    stored = any_place.store.get(key)
    assert (stored.data, stored.etag) == (b"hello", etag)
    head = any_place.store.head(key)
    assert (head.size_bytes, head.etag) == (5, etag)
    assert abs((datetime.now(UTC) - head.last_modified).total_seconds()) < 300


def test_an_empty_object_can_be_stored(any_place: Place) -> None:
    any_place.store.put(any_place.key("empty"), b"")
    assert any_place.store.get(any_place.key("empty")).data == b""


def test_a_put_replaces_the_whole_object(any_place: Place) -> None:
    any_place.store.put(any_place.key("a"), b"a long first version")
    any_place.store.put(any_place.key("a"), b"short")
    assert any_place.store.get(any_place.key("a")).data == b"short"


def test_reading_an_object_larger_than_the_limit_is_refused(any_place: Place) -> None:
    any_place.store.put(any_place.key("a"), b"x" * 100)
    assert len(any_place.store.get(any_place.key("a"), max_bytes=100).data) == 100
    with pytest.raises(IntegrityError):
        any_place.store.get(any_place.key("a"), max_bytes=99)


def test_a_range_is_read_exactly(any_place: Place) -> None:
    key, data = any_place.key("a"), bytes(range(256)) * 8
    etag = any_place.store.put(key, data)
    for start, size in ((0, 1), (0, 2048), (2047, 1), (100, 1000)):
        stored = any_place.store.get_range(key, start=start, size_bytes=size)
        assert (stored.data, stored.etag) == (data[start : start + size], etag)


@pytest.mark.parametrize(("start", "size_bytes"), [(0, 101), (90, 11), (100, 1), (5000, 10)])
def test_a_range_that_the_object_does_not_have_is_refused(any_place: Place, start: int, size_bytes: int) -> None:
    any_place.store.put(any_place.key("a"), b"x" * 100)
    with pytest.raises(IntegrityError):
        any_place.store.get_range(any_place.key("a"), start=start, size_bytes=size_bytes)


def test_a_range_of_a_missing_object_is_an_error_that_names_it(any_place: Place) -> None:
    with pytest.raises(ObjectMissingError) as caught:
        any_place.store.get_range(any_place.key("none"), start=0, size_bytes=1)
    assert (caught.value.key, caught.value.operation) == (any_place.key("none"), "get_range")


@pytest.mark.parametrize("operation", ["get", "head"])
def test_a_missing_object_is_an_error_that_names_it(any_place: Place, operation: str) -> None:
    with pytest.raises(ObjectMissingError) as caught:
        getattr(any_place.store, operation)(any_place.key("none"))
    assert (caught.value.bucket, caught.value.key) == (any_place.store.bucket, any_place.key("none"))
    assert caught.value.operation == operation
    assert not caught.value.retryable


def test_the_size_of_an_object_is_that_of_its_newest_content(any_place: Place) -> None:
    key = any_place.key("deeper/a")
    for data in (b"x" * 100, b"", b"y" * 7):
        any_place.store.put(key, data)
        assert any_place.store.size_of(key) == len(data) == any_place.store.head(key).size_bytes
    any_place.store.delete(key)
    for missing in (key, any_place.key("deeper"), any_place.key("none")):
        with pytest.raises(ObjectMissingError) as caught:
            any_place.store.size_of(missing)
        assert caught.value.key == missing


def test_a_copy_has_the_content_and_replaces_what_was_there(any_place: Place) -> None:
    source, target = any_place.key("a"), any_place.key("deeper/b.sqsh")
    etag = any_place.store.put(source, b"content")
    any_place.store.put(target, b"something longer")
    any_place.store.copy(source, target, if_match=etag)
    for key in (source, target):
        assert any_place.store.get(key).data == b"content"
        assert (any_place.store.head(key).size_bytes, any_place.store.head(key).etag) == (7, etag)


def test_a_copy_of_a_missing_object_is_an_error_and_leaves_nothing(any_place: Place) -> None:
    with pytest.raises(ObjectMissingError):
        any_place.store.copy(any_place.key("none"), any_place.key("b"), if_match="0" * 32)
    assert any_place.store.list(any_place.prefix).objects == ()


def test_a_copy_of_another_state_is_refused_or_the_condition_is_ignored(any_place: Place) -> None:
    source, target = any_place.key("a"), any_place.key("b")
    any_place.store.put(source, b"2")
    try:
        any_place.store.copy(source, target, if_match="0" * 32)
    except PreconditionFailedError:
        assert any_place.store.list(target).objects == ()
    else:
        assert any_place.name in ("moto", "rclone")
        assert any_place.store.get(target).data == b"2"


def test_deleting_is_idempotent(any_place: Place) -> None:
    any_place.store.put(any_place.key("a"), b"x")
    any_place.store.delete(any_place.key("a"))
    any_place.store.delete(any_place.key("a"))
    with pytest.raises(ObjectMissingError):
        any_place.store.head(any_place.key("a"))


def test_the_bucket_outlives_its_last_object(any_place: Place) -> None:
    any_place.store.put(any_place.key("only"), b"x")
    any_place.store.delete(any_place.key("only"))
    assert any_place.store.list(any_place.prefix).objects == ()
    any_place.store.put(any_place.key("only"), b"y")


def test_the_probe_for_conditional_writes_is_right_and_leaves_nothing(any_place: Place) -> None:
    assert any_place.store.supports_conditional_writes() is any_place.conditional_writes
    assert any_place.store.list("holdfast-probe/").objects == ()


def test_write_conditions_hold_or_are_known_to_be_ignored(any_place: Place) -> None:
    key = any_place.key("a")
    first = any_place.store.put(key, b"1", if_none_match=True)
    if not any_place.conditional_writes:
        any_place.store.put(key, b"2", if_none_match=True)
        assert any_place.store.get(key).data == b"2"
        return
    with pytest.raises(PreconditionFailedError):
        any_place.store.put(key, b"2", if_none_match=True)
    second = any_place.store.put(key, b"2", if_match=first)
    with pytest.raises(PreconditionFailedError):
        any_place.store.put(key, b"3", if_match=first)
    assert (any_place.store.get(key).data, any_place.store.get(key).etag) == (b"2", second)


def test_replacing_a_missing_object_fails_the_condition(any_place: Place) -> None:
    if not any_place.conditional_writes:
        assert any_place.store.put(any_place.key("none"), b"x", if_match="0" * 32)
        return
    with pytest.raises(PreconditionFailedError):
        any_place.store.put(any_place.key("none"), b"x", if_match="0" * 32)


def test_one_of_many_concurrent_creators_wins(any_place: Place) -> None:
    def create(number: int) -> int | None:
        try:
            any_place.store.put(any_place.key("race"), str(number).encode(), if_none_match=True)
        except PreconditionFailedError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]
    assert len(winners) == (1 if any_place.conditional_writes else 8)
    assert any_place.store.get(any_place.key("race")).data.decode() in map(str, winners)


def test_a_listing_is_in_byte_order_over_its_pages(any_place: Place) -> None:
    names = ["a-b", "a/b/c", "foo-bar/x", "foo.txt", "foo/x", "foo0/x", "z"]
    for name in reversed(names):
        any_place.store.put(any_place.key(name), b"x")
    assert [row.key for row in any_place.store.list(any_place.prefix).objects] == [any_place.key(n) for n in names]
    seen: list[str] = []
    after: str | None = None
    while True:
        page = any_place.store.list(any_place.prefix, after=after, limit=2)
        seen += [row.key for row in page.objects]
        after = page.after
        if after is None:
            break
    assert seen == [any_place.key(n) for n in names]


def test_a_listing_with_a_delimiter_continues_behind_each_prefix(any_place: Place) -> None:
    for name in ["foo-bar/x", "foo/a", "foo/b", "foo0/x"]:
        any_place.store.put(any_place.key(name), b"x")
    seen: list[str] = []
    after: str | None = None
    while True:
        page = any_place.store.list(any_place.prefix, after=after, limit=1, delimiter="/")
        assert page.objects == ()
        seen += page.prefixes
        after = page.after
        if after is None:
            break
    assert seen == [any_place.key(name) for name in ("foo-bar/", "foo/", "foo0/")]


def test_listing_nothing_is_an_empty_last_page(any_place: Place) -> None:
    page = any_place.store.list(any_place.key("nothing/"))
    assert (page.objects, page.prefixes, page.after) == ((), (), None)


def test_presigned_put_and_get_transfer_exactly_the_bytes(place: Place) -> None:
    data = b"presigned" * 1000
    known = digest(data)
    signed = place.store.presign_put(place.key("p"), content_md5=known.content_md5, size_bytes=len(data), ttl_s=60)
    response = send(signed, data)
    assert response.status_code == 200
    assert response.headers["ETag"] == f'"{known.md5}"'
    assert fetch(place.store.presign_get(place.key("p"), ttl_s=60)).content == data


def test_a_presigned_range_is_answered_with_its_content_range(place: Place) -> None:
    place.store.put(place.key("p"), b"0123456789")
    response = fetch(place.store.presign_get(place.key("p"), ttl_s=60), {"Range": "bytes=2-4"})
    assert response.content == b"234"
    assert response.headers["Content-Range"] == "bytes 2-4/10"
    assert response.status_code == (200 if place.name == "rclone" else 206)


def test_a_conditional_read_of_another_version_is_refused_or_shows_its_etag(place: Place) -> None:
    etag = place.store.put(place.key("p"), b"0123456789")
    response = fetch(place.store.presign_get(place.key("p"), ttl_s=60), {"If-Match": '"00"', "Range": "bytes=0-1"})
    if place.conditional_reads:
        assert response.status_code == 412
    else:
        assert response.headers["ETag"] == f'"{etag}"'


def test_damaged_bytes_are_refused_if_the_store_checks_md5(place: Place) -> None:
    known = digest(b"intended")
    signed = place.store.presign_put(place.key("p"), content_md5=known.content_md5, size_bytes=8, ttl_s=60)
    response = send(signed, b"INTENDED")
    if place.checks_md5:
        assert response.status_code == 400
        with pytest.raises(ObjectMissingError):
            place.store.head(place.key("p"))
    else:
        assert response.headers["ETag"] != f'"{known.md5}"'


def test_a_signature_covers_the_key_method_size_and_md5(place: Place) -> None:
    known = digest(b"x" * 10)
    signed = place.store.presign_put(place.key("p1"), content_md5=known.content_md5, size_bytes=10, ttl_s=60)
    if not place.checks_signatures:
        return
    assert send(SignedRequest(signed.url.replace("/p1?", "/p2?"), signed.headers), b"x" * 10).status_code == 403
    assert fetch(signed).status_code == 403
    other = {**signed.headers, "Content-MD5": digest(b"y" * 10).content_md5}
    assert send(SignedRequest(signed.url, other), b"y" * 10).status_code == 403
    longer = {**signed.headers, "Content-Length": "11"}
    assert send(SignedRequest(signed.url, longer), b"x" * 11).status_code == 403
    for key in ("p1", "p2"):
        with pytest.raises(ObjectMissingError):
            place.store.head(place.key(key))


def test_an_expired_url_is_refused(place: Place) -> None:
    place.store.put(place.key("p"), b"x")
    signed = place.store.presign_get(place.key("p"), ttl_s=1)
    if not place.checks_signatures:
        pytest.skip("this server checks no signatures")
    deadline = time.monotonic() + 20
    while fetch(signed).status_code == 200:
        assert time.monotonic() < deadline, "a URL of one second is still good after twenty"
    assert fetch(signed).status_code in (400, 403)


def test_parts_in_any_order_become_one_object(place: Place) -> None:
    key = place.key("multi")
    parts = [b"a" * PART, b"b" * PART, b"tail"]
    upload_id = place.store.create_upload(key)
    etags = {number: put_part(place, key, upload_id, number, parts[number - 1]) for number in (2, 1, 3, 1)}
    with pytest.raises(ObjectMissingError):
        place.store.head(key)
    etag = place.store.complete_upload(key, upload_id, [etags[n] for n in (1, 2, 3)])
    assert etag == multipart_etag([digest(p) for p in parts])
    head = place.store.head(key)
    assert head.size_bytes == 2 * PART + 4
    whole = hashlib.md5(b"".join(parts)).hexdigest()
    assert head.etag == (whole if place.name == "rclone" else etag)
    assert fetch(place.store.presign_get(key, ttl_s=60)).content == b"".join(parts)


def test_an_aborted_upload_is_gone_and_aborting_is_idempotent(place: Place) -> None:
    key = place.key("multi")
    upload_id = place.store.create_upload(key)
    put_part(place, key, upload_id, 1, b"only")
    assert [(u.key, u.upload_id) for u in place.store.list_uploads(place.prefix)] == [(key, upload_id)]
    place.store.abort_upload(key, upload_id)
    place.store.abort_upload(key, upload_id)
    assert place.store.list_uploads(place.prefix) == []
    # moto itself fails here, with a 500.
    with pytest.raises(StoreUnavailableError if place.name == "moto" else ObjectMissingError):
        place.store.complete_upload(key, upload_id, [digest(b"only").md5])


def test_an_upload_is_listed_until_it_is_aborted(any_place: Place) -> None:
    key = any_place.key("multi")
    upload_id = any_place.store.create_upload(key)
    assert [(u.key, u.upload_id) for u in any_place.store.list_uploads(any_place.prefix)] == [(key, upload_id)]
    assert list(any_place.store.list_uploads(any_place.key("multi/"))) == []
    any_place.store.abort_upload(key, upload_id)
    any_place.store.abort_upload(key, upload_id)
    assert list(any_place.store.list_uploads(any_place.prefix)) == []


def test_completing_an_upload_with_an_unsent_part_creates_no_object(place: Place) -> None:
    key = place.key("multi")
    upload_id = place.store.create_upload(key)
    put_part(place, key, upload_id, 1, b"only")
    with pytest.raises(StorageError):
        place.store.complete_upload(key, upload_id, ["0" * 32])
    place.store.abort_upload(key, upload_id)
    with pytest.raises(ObjectMissingError):
        place.store.head(key)


def test_many_threads_can_share_one_store(any_place: Place) -> None:
    def round_trip(number: int) -> bytes:
        any_place.store.put(any_place.key(f"t/{number}"), str(number).encode())
        return any_place.store.get(any_place.key(f"t/{number}")).data

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(round_trip, range(40))) == [str(n).encode() for n in range(40)]


def test_a_missing_bucket_has_its_own_error(place: Place) -> None:
    elsewhere = S3ObjectStore(place.config.model_copy(update={"bucket": "holdfast-no-such-bucket"}), transfer=FAST)
    with pytest.raises(BucketMissingError) as caught:
        elsewhere.check()
    assert caught.value.hint
    with pytest.raises(BucketMissingError):
        elsewhere.get("a")
    with pytest.raises(BucketMissingError):
        elsewhere.list("a")


def test_wrong_credentials_are_a_permanent_error(place: Place) -> None:
    if not place.checks_signatures:
        pytest.skip("this server checks no signatures")
    wrong = place.config.model_copy(update={"secret_access_key": SecretStr("a-wrong-secret-key-0000")})
    with pytest.raises(AccessRefusedError) as caught:
        S3ObjectStore(wrong, transfer=FAST).get(place.key("a"))
    assert not caught.value.retryable
    assert "a-wrong-secret" not in f"{caught.value} {caught.value.hint}"


def test_an_unreachable_store_is_unavailable(place: Place) -> None:
    nowhere = place.config.model_copy(update={"endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(StoreUnavailableError) as caught:
        S3ObjectStore(nowhere, transfer=FAST.model_copy(update={"attempts": 1})).head("a")
    assert caught.value.retryable
    assert "127.0.0.1:1" in str(caught.value)
    assert "http" not in str(caught.value)


def test_the_stores_clock_is_the_one_that_dates_objects(place: Place) -> None:
    before = place.store.find_now()
    place.store.put(place.key("dated"), b"")
    after = place.store.find_now()
    assert before is not None and after is not None
    second = timedelta(seconds=1)
    assert before - second <= place.store.head(place.key("dated")).last_modified <= after + second


def test_lifecycle_rules_are_installed_beside_foreign_ones_or_refused_with_a_hint(place: Place) -> None:
    store = place.store
    assert isinstance(store, S3ObjectStore)
    if not place.has_lifecycle:
        with pytest.raises(LifecycleUnsupportedError, match="no lifecycle rules") as caught:
            install(store, expire_after_days=30)
        assert "collection" in (caught.value.hint or "")
        assert store.rules_over_layers() == ()
        with pytest.raises(LifecycleUnsupportedError):
            store.replace_lifecycle_rules(
                [{"ID": "x", "Status": "Enabled", "Filter": {"Prefix": "x/"}, "Expiration": {"Days": 1}}]
            )
        return
    before = list(store.lifecycle_rules())
    foreign = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 7}}
    try:
        store.replace_lifecycle_rules([foreign])
        assert inspect(store) == LifecycleStatus(None, None, 1)
        assert install(store, expire_after_days=30) == LifecycleStatus(30, 1, 1)
        assert install(store, expire_after_days=60) == LifecycleStatus(60, 1, 1)
        kept = {rule["ID"]: rule for rule in store.lifecycle_rules()}["theirs"]
        assert kept["Filter"]["Prefix"] == "logs/" and kept["Expiration"]["Days"] == 7
        assert remove(store) == LifecycleStatus(None, None, 1)
        assert S3ObjectStore(place.config, transfer=FAST).rules_over_layers() == ()
        store.replace_lifecycle_rules([{**foreign, "Filter": {"Prefix": ""}}])
        assert install(store, expire_after_days=30) == LifecycleStatus(30, 1, 1, ("theirs",))
        assert S3ObjectStore(place.config, transfer=FAST).rules_over_layers() == ("theirs",)
    finally:
        store.replace_lifecycle_rules(before)


def test_content_md5_is_the_base64_of_the_digest() -> None:
    assert base64.b64decode(digest(b"x").content_md5).hex() == digest(b"x").md5


@pytest.mark.parametrize("word", ["page", "well-formed"])
def test_a_proxys_page_counts_as_no_answer(place: Place, word: str) -> None:
    key = place.key("file")
    place.store.put(key, b"data")
    with fault_proxy(place.config) as (proxy, config):
        store = S3ObjectStore(config, transfer=FAST)
        calls: dict[str, Callable[[], object]] = {
            "put": lambda: store.put(key, b"data"),
            "get": lambda: store.get(key),
            "list": lambda: store.list(key),
            "head": lambda: store.head(key),
            "create": lambda: store.create_upload(key),
        }
        for name, call in calls.items():
            proxy.script(name if name in ("head", "create") else "api", f"{word} " * 20)
            with pytest.raises(StoreUnavailableError):
                call()
            proxy.clear()
            assert call() is not None


@pytest.mark.parametrize("word", ["truncate", "reset-answer"])
def test_an_object_is_read_again_while_its_answer_ends_too_early(place: Place, word: str) -> None:
    key, data = place.key("file"), bytes(range(256)) * 64
    place.store.put(key, data)
    with fault_proxy(place.config) as (proxy, config):
        store = S3ObjectStore(config, transfer=FAST)
        proxy.script("api", f"{word} " * (FAST.attempts - 1))
        assert store.get(key).data == data

        proxy.script("api", f"{word} " * FAST.attempts)
        with pytest.raises(StoreUnavailableError, match="cut short"):
            store.get(key)


@pytest.mark.parametrize("word", ["flip", "no-etag"])
def test_an_object_is_read_again_while_its_content_is_not_that_of_its_etag(place: Place, word: str) -> None:
    key, data = place.key("file"), bytes(range(256)) * 64
    etag = place.store.put(key, data)
    with fault_proxy(place.config) as (proxy, config):
        store = S3ObjectStore(config, transfer=FAST)
        proxy.script("api", f"{word} " * (FAST.attempts - 1))
        assert store.get(key) == Stored(data, etag)
        assert len(proxy.seen) == FAST.attempts


def test_a_content_that_differs_at_every_attempt_counts_as_no_answer(place: Place) -> None:
    key = place.key("file")
    place.store.put(key, bytes(1000))
    with fault_proxy(place.config) as (proxy, config):
        store = S3ObjectStore(config, transfer=FAST)
        proxy.script("api", "flip " * (FAST.attempts - 1) + "no-etag")
        with pytest.raises(StoreUnavailableError, match="not that of its ETag"):
            store.get(key)


def test_etags_that_are_no_digests_of_the_content_are_found_out_once(place: Place) -> None:
    key = place.key("file")
    etag = place.store.put(key, bytes(1000))
    with fault_proxy(place.config) as (proxy, config):
        store = S3ObjectStore(config, transfer=FAST)
        proxy.script("api", "flip " * (FAST.attempts + 1))  # the same content each time, beside the other's ETag
        first = store.get(key)
        assert first.etag == etag and first.data != bytes(1000)
        assert store.get(key) == first
        assert len(proxy.seen) == FAST.attempts + 1


def test_an_object_that_is_replaced_while_it_is_read_has_one_of_its_contents(place: Place) -> None:
    key, contents = place.key("file"), [bytes([n]) * (1000 + 400 * n) for n in range(4)]
    place.store.put(key, contents[0])
    patient = S3ObjectStore(place.config, transfer=IMPATIENT)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: [patient.get(key) for _ in range(300)])
        turns = itertools.cycle(contents)
        while not reading.done():
            place.store.put(key, next(turns))
    digests = {hashlib.md5(content).hexdigest(): content for content in contents}
    assert all(digests[stored.etag] == stored.data for stored in reading.result())


def test_an_answer_that_stops_half_way_counts_as_no_answer(place: Place) -> None:
    key = place.key("file")
    place.store.put(key, bytes(16_384))
    with fault_proxy(place.config) as (proxy, config):
        store = S3ObjectStore(config, transfer=IMPATIENT)
        proxy.script("api", "stall-answer")
        with pytest.raises(StoreUnavailableError):
            store.get(key)
        proxy.released.set()
