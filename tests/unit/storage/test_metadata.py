"""Metadata documents: written as Cloudflare's SDK reads them, read back exactly, and refused when damaged."""

from __future__ import annotations

import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from storage.errors import CorruptMetadataError, NewerDocumentError
from storage.metadata import (
    MAX_LAYERS,
    BackupRecord,
    Claim,
    Document,
    ListingDigest,
    NotKept,
    RestoredDirectory,
    SandboxState,
    StoredLayer,
    load,
)
from storage.signing import sign, verify

ID = "7f8b6a0e-5c1d-4a52-9d1e-2b7f4f3f9a10"
AT = datetime(2026, 2, 23, 10, 11, 12, 345000, tzinfo=UTC)
KEY = SecretStr("a signing key of the operator's")
FOREIGN: dict[str, Any] = {
    "id": ID,
    "dir": "/workspace",
    "name": "before upgrade",
    "sizeBytes": 4096,
    "ttl": 259200,
    "createdAt": "2026-02-23T10:11:12.345Z",
}
FULL = BackupRecord(
    id=ID,
    dir="/workspace",
    name="before upgrade",
    size_bytes=4096,
    ttl=259200,
    created_at=AT,
    version=1,
    tenant="acme",
    sandbox="box",
    sha256="a" * 64,
    part_bytes=5 * 2**20,
    parts=["b" * 64],
    etag="c" * 32,
    files=3,
    inodes=5,
    source_bytes=10_000,
    compression="zstd-1",
    not_kept=NotKept(sockets=1, acls=2, other_xattrs=3),
    max_name_bytes=255,
    uid=1000,
)

PARENT = "0b5d8a34-8a0a-4d0e-8d3f-6a1f0f6ab001"


def layer(letter: str, size_bytes: int = 100) -> StoredLayer:
    return StoredLayer(sha256=letter * 64, size_bytes=size_bytes, part_bytes=5 * 2**20, parts=[letter * 64])


def on(*layers: StoredLayer, **fields: Any) -> BackupRecord:
    """An incremental backup with these layers."""
    own = layers[-1]
    ours = dict(FULL.__dict__, version=2, etag=None, layers=list(layers), parent=PARENT)
    digests = {name: getattr(own, name) for name in ("sha256", "size_bytes", "part_bytes", "parts")}
    return BackupRecord(**{**ours, **digests, **fields})


INCREMENTAL = on(layer("d", 4000), layer("e", 200), layer("f", 30))


def build(fields: dict[str, Any]) -> BackupRecord:
    return BackupRecord(**fields)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)
counts = st.none() | st.integers(0, 2**53 - 1)
records = st.fixed_dictionaries(
    {
        "id": st.uuids().map(str),
        "dir": texts.filter(lambda t: "\0" not in t and ".." not in t).map(lambda t: f"/workspace/{t}"),
        "name": st.none() | texts,
        "size_bytes": st.integers(0, 2**53 - 1),
        "ttl": st.floats(0, 3e9, exclude_min=True, allow_subnormal=False),
        "created_at": st.datetimes(datetime(2000, 1, 2), datetime(2199, 1, 1), timezones=st.just(UTC)),
        "version": st.sampled_from([None, 1]),
        "tenant": st.sampled_from([None, "default", "acme"]),
        "sandbox": st.sampled_from([None, "box"]),
        "sha256": st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex),
        "parts": st.none() | st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), max_size=3),
        "files": counts,
        "inodes": counts,
        "not_kept": st.none() | st.builds(NotKept, sockets=st.integers(0, 9)),
        "signature": st.none() | texts,
    }
).map(build)


def changed(**fields: Any) -> bytes:
    return json.dumps({**FOREIGN, **fields}).encode()


def each(name: str, *values: Any) -> list[bytes]:
    return [changed(**{name: value}) for value in values]


def test_the_six_fields_are_written_as_the_sandbox_sdk_writes_them() -> None:
    record = load(BackupRecord, json.dumps(FOREIGN).encode())
    assert json.loads(record.to_json()) == FOREIGN
    assert b'"ttl":259200}' in record.to_json()
    assert json.loads(FULL.to_json()).items() >= FOREIGN.items()


def test_our_fields_are_camel_case() -> None:
    ours = set(json.loads(FULL.to_json())) - set(FOREIGN)
    assert ours == {
        "version", "tenant", "sandbox", "sha256", "partBytes", "parts", "etag", "files", "inodes", "sourceBytes",
        "compression", "notKept", "maxNameBytes", "uid",
    }  # fmt: skip
    assert json.loads(FULL.to_json())["notKept"] == {"sockets": 1, "acls": 2, "otherXattrs": 3}


def test_a_foreign_document_loads_and_belongs_to_the_default_tenant() -> None:
    five = {name: value for name, value in FOREIGN.items() if name != "name"}
    for document in (FOREIGN, five, {**five, "name": None}):
        record = load(BackupRecord, json.dumps(document).encode())
        assert record.owner == "default"
        assert record.digest.sha256 is None and record.digest.size_bytes == 4096
    assert b"name" not in load(BackupRecord, json.dumps(five).encode()).to_json()


@given(records)
def test_a_document_survives_writing_and_reading(record: BackupRecord) -> None:
    again = load(BackupRecord, record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()
    assert verify(load(BackupRecord, sign(record, KEY).to_json()), [KEY])


def test_unknown_fields_are_kept_and_signed() -> None:
    record = load(BackupRecord, changed(labels={"a": [1, None, 2.5]}))
    assert json.loads(record.to_json())["labels"] == {"a": [1, None, 2.5]}
    signed = json.loads(sign(record, KEY).to_json())
    assert verify(load(BackupRecord, json.dumps(signed).encode()), [KEY])
    signed["labels"] = {}
    assert not verify(load(BackupRecord, json.dumps(signed).encode()), [KEY])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        json.dumps(FOREIGN).encode()[:-1],
        *each("ttl", 0, -1, None, "259200", True, float("nan"), float("inf"), 1e300, []),
        *each("sizeBytes", -1, 1.5, "4096", True, 2**53, 10**400, None),
        *each("id", "", "x", ID.upper(), ID.replace("-", ""), f"../{ID}", 7, None),
        *each("dir", "", "workspace", "/a/../b", "/a\0b", 7, None, "/" + "a" * 4096),
        *each("name", 7, "x" * 257, []),
        *each("createdAt", "9999-12-31T23:59:59.999Z", "1999-12-31T23:59:59.999Z", "0000-00-00T00:00:00Z"),
        *each("createdAt", "2026-02-23T10:11:12.345", "2026-02-30T10:11:12.345Z", "2026-02-23", "yesterday"),
        *each("createdAt", "", 1771841472, None),
        *each("version", 0, -1, "1", "2", 1.5, True),
        *each("tenant", "", "../x", "A", 7),
        *each("sha256", "", "a" * 63, "A" * 64, 7),
        *each("parts", ["x"], "x", {}, [None]),
        *each("notKept", [], {"sockets": -1}, 7),
    ],
)  # fmt: skip
def test_a_damaged_document_is_an_error(data: bytes) -> None:
    with pytest.raises(CorruptMetadataError) as caught:
        load(BackupRecord, data, bucket="b", key="k")
    assert (caught.value.bucket, caught.value.key, caught.value.retryable) == ("b", "k", False)


@given(st.integers(0, 8 * len(sign(FULL, KEY).to_json()) - 1))
def test_a_flipped_bit_is_an_error_or_breaks_the_signature(bit: int) -> None:
    data = bytearray(sign(FULL, KEY).to_json())
    data[bit // 8] ^= 1 << bit % 8
    try:
        record = load(BackupRecord, bytes(data))
    except (CorruptMetadataError, NewerDocumentError):  # newer, if the bit is one of its version
        return
    assert not verify(record, [KEY])


@given(st.binary(max_size=200))
def test_random_bytes_are_corrupt_metadata(data: bytes) -> None:
    for document in (BackupRecord, SandboxState):
        with pytest.raises(CorruptMetadataError):
            load(document, data)


def test_only_the_signing_key_verifies_a_signature() -> None:
    signed = sign(FULL, KEY)
    assert verify(signed, [KEY])
    assert not verify(signed, [SecretStr("another")])
    assert not verify(FULL, [KEY])
    assert not verify(signed.model_copy(update={"tenant": "other"}), [KEY])
    assert not verify(signed.model_copy(update={"signature": "ü"}), [KEY])
    assert sign(signed, KEY) == signed


def test_a_backup_expires_a_buffer_before_the_end_of_its_ttl() -> None:
    end = AT + timedelta(seconds=259200)
    assert FULL.expires_at == end
    assert not FULL.is_expired(end - timedelta(seconds=60, milliseconds=1))
    assert FULL.is_expired(end - timedelta(seconds=60))
    assert not FULL.is_expired(end - timedelta(milliseconds=1), buffer_s=0)
    assert FULL.is_expired(end, buffer_s=0)


def test_instants_become_utc_in_milliseconds() -> None:
    record = load(BackupRecord, changed(createdAt="2026-02-23T19:11:12.345678+09:00"))
    assert json.loads(record.to_json())["createdAt"] == FOREIGN["createdAt"]
    with pytest.raises(ValidationError):
        BackupRecord(id=ID, dir="/tmp", size_bytes=1, ttl=1, created_at=datetime(2026, 1, 1))


def test_a_state_document_is_read_back() -> None:
    restored = RestoredDirectory(dir="/workspace", backup_id=ID, mode="overlay", driver="fuse", restored_at=AT)
    state = SandboxState(id="box", tenant="acme", created_at=AT, restored=[restored])
    document = json.loads(state.to_json())
    assert {name: value for name, value in document.items() if value} == {
        "version": 1,
        "id": "box",
        "tenant": "acme",
        "createdAt": "2026-02-23T10:11:12.345Z",
        "restored": [
            {
                "dir": "/workspace",
                "backupId": ID,
                "mode": "overlay",
                "driver": "fuse",
                "restoredAt": "2026-02-23T10:11:12.345Z",
            }
        ],
    }
    assert load(SandboxState, state.to_json()) == state


@pytest.mark.parametrize("document", [BackupRecord, SandboxState, Claim])
@pytest.mark.parametrize("data", [{"version": 3}, {"version": 999, "id": [7], "new": {}}])
def test_a_later_releases_document_is_told_apart_from_a_damaged_one(
    document: type[Document], data: dict[str, Any]
) -> None:
    with pytest.raises(NewerDocumentError) as caught:
        load(document, json.dumps(data).encode(), bucket="b", key="k")
    assert (caught.value.bucket, caught.value.key, caught.value.retryable) == ("b", "k", False)


def test_a_signature_made_before_a_field_existed_still_verifies() -> None:
    signed = json.loads(sign(FULL.model_copy(update={"not_kept": None}), KEY).to_json())
    unsigned = {**signed, "notKept": {"sockets": 1}}
    del unsigned["signature"]
    canonical = json.dumps(unsigned, sort_keys=True, separators=(",", ":")).encode()
    derived = hmac.digest(KEY.get_secret_value().encode(), b"holdfast backup metadata, version 1", "sha256")
    signature = hmac.new(derived, canonical, "sha256").hexdigest()
    record = load(BackupRecord, json.dumps({**unsigned, "signature": signature}).encode())
    assert record.not_kept == NotKept(sockets=1, acls=0, other_xattrs=0)
    assert verify(record, [KEY])


def test_the_first_key_signs_and_every_key_verifies() -> None:
    old, new = SecretStr("old"), SecretStr("new")
    assert verify(sign(FULL, old), [new, old])
    assert verify(sign(FULL, new), [new, old])
    assert not verify(sign(FULL, old), [new])
    assert not verify(sign(FULL, old), [])


@pytest.mark.parametrize("name", sorted(set(BackupRecord.model_fields) - {"signature"}))
def test_a_record_that_lost_its_signature_is_told_apart_from_a_foreign_one(name: str) -> None:
    six = load(BackupRecord, json.dumps(FOREIGN).encode())
    listing = ListingDigest(size_bytes=9, index_bytes=9, entries=1, sha256="0" * 64)
    rest = {"partial": True, "of_sleep": True, "place": "/app", "layers": INCREMENTAL.layers, "parent": PARENT}
    value = FULL.model_copy(update={**rest, "listing": listing}).__dict__[name]
    record = six.model_copy(update={name: value})
    assert record.has_lost_its_signature is (name not in ("id", "dir", "name", "size_bytes", "ttl", "created_at"))
    assert not record.model_copy(update={"signature": "x"}).has_lost_its_signature


def test_an_incremental_backup_counts_all_its_layers() -> None:
    assert (INCREMENTAL.is_incremental, INCREMENTAL.depth, INCREMENTAL.total_bytes) == (True, 3, 4230)
    assert INCREMENTAL.size_bytes == 30
    assert INCREMENTAL.stack == (layer("d", 4000), layer("e", 200), layer("f", 30))
    assert load(BackupRecord, INCREMENTAL.to_json()) == INCREMENTAL
    assert (FULL.is_incremental, FULL.depth, FULL.total_bytes) == (False, 1, 4096)


def test_a_full_backup_can_be_built_on_if_its_digests_make_a_layer() -> None:
    assert FULL.stack == (StoredLayer(sha256="a" * 64, size_bytes=4096, part_bytes=5 * 2**20, parts=["b" * 64]),)
    for missing in ("sha256", "part_bytes", "parts"):
        assert FULL.model_copy(update={missing: None}).stack == ()
    assert FULL.model_copy(update={"parts": ["b" * 64] * 2}).stack == ()


def test_the_signature_covers_layers_and_parent() -> None:
    signed = json.loads(sign(INCREMENTAL, KEY).to_json())
    assert verify(load(BackupRecord, json.dumps(signed).encode()), [KEY])
    moved = [signed["layers"][1], signed["layers"][0], signed["layers"][2]]
    shorter = [*signed["layers"][:1], *signed["layers"][2:]]
    for edit in ({"layers": moved}, {"layers": shorter}, {"parent": ID}):
        assert not verify(load(BackupRecord, json.dumps({**signed, **edit}).encode()), [KEY])


def test_layers_that_cannot_be_are_refused() -> None:
    sound = json.loads(INCREMENTAL.to_json())
    first, second, own = sound["layers"]
    edits: list[dict[str, Any]] = [
        {"version": 1},
        {"version": None},
        {"layers": None},
        {"layers": []},
        {"layers": [own]},
        {"layers": [own, first]},
        {"layers": [first, first, own]},
        {"layers": [first, {**own, "sizeBytes": 31}]},
        {"layers": [{**first, "sha256": "../" + "d" * 61}, own]},
        {"layers": [{**first, "sha256": "D" * 64}, own]},
        {"layers": [{**first, "parts": []}, own]},
        {"layers": [{**first, "partBytes": 0}, own]},
        {"layers": [{**first, "partBytes": 1, "parts": ["d" * 64]}, own]},
        {"layers": [{**first, "sizeBytes": -1}, own]},
        {"layers": [{**first, "sha256": f"{n:064x}"} for n in range(MAX_LAYERS)] + [own]},
        {"layers": [{**first, "partBytes": 1, "sizeBytes": 9_999, "parts": ["d" * 64] * 9_999}, second, own]},
        {"parent": "no id"},
    ]
    for edit in edits:
        with pytest.raises(CorruptMetadataError):
            load(BackupRecord, json.dumps({**sound, **edit}).encode())


def test_a_state_has_no_version_2() -> None:
    state = SandboxState(id="box", tenant="acme", created_at=AT)
    with pytest.raises(NewerDocumentError):
        load(SandboxState, json.dumps({**json.loads(state.to_json()), "version": 2}).encode())
