"""Transfer of archives: whole and checked in spite of faults, or nothing is left. Over real sockets and servers."""

from __future__ import annotations

import errno
import hashlib
import logging
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from storage.config import BucketConfig, TransferConfig
from storage.digests import ArchiveDigest, UploadedArchive, multipart_etag
from storage.errors import (
    AccessRefusedError,
    IntegrityError,
    ObjectMissingError,
    SignatureExpiredError,
    StorageError,
    StoreUnavailableError,
    TransferCancelledError,
)
from storage.s3 import S3ObjectStore
from storage.transfer import download, upload
from tests.support.s3 import ACCESS_KEY, FAST, IMPATIENT, SECRET_KEY, FaultProxy, fault_proxy

KEY = "backups/7f8b6a0e-5c1d-4a52-9d1e-2b7f4f3f9a10/data.sqsh"
SMALL = random.Random(1).randbytes(300_000)
LARGE = random.Random(2).randbytes(12 * 2**20 + 12_345)  # three parts, the last one shorter
PARTS = 3


@dataclass(slots=True)
class Rig:
    """A store behind a proxy that can fail, and the same store without it."""

    proxy: FaultProxy
    store: S3ObjectStore
    direct: S3ObjectStore
    folder: Path
    moved: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def progress(self, count: int) -> None:
        with self.lock:
            self.moved += count

    def file(self, data: bytes) -> Path:
        path = self.folder / "archive"
        path.write_bytes(data)
        return path

    def upload(
        self, data: bytes, *, config: TransferConfig = FAST, cancelled: threading.Event | None = None
    ) -> UploadedArchive:
        self.moved = 0
        return upload(
            self.store,
            KEY,
            self.file(data),
            config=config,
            progress=self.progress,
            cancelled=cancelled or threading.Event(),
        )

    def download(
        self,
        expected: ArchiveDigest,
        *,
        config: TransferConfig = FAST,
        cancelled: threading.Event | None = None,
    ) -> bytes:
        self.moved = 0
        target = self.folder / "download"
        download(
            self.store,
            KEY,
            target,
            expected=expected,
            config=config,
            progress=self.progress,
            cancelled=cancelled or threading.Event(),
        )
        return target.read_bytes()

    def assert_nothing_left(self) -> None:
        with pytest.raises(ObjectMissingError):
            self.direct.head(KEY)
        assert list(self.direct.list_uploads("")) == []
        assert not (self.folder / "download").exists()
        assert [t.name for t in threading.enumerate() if t.name.startswith("transfer")] == []


def digest_of(uploaded: UploadedArchive) -> ArchiveDigest:
    """The digests that a download has to match, as the metadata of a backup keeps them."""
    shas = tuple(part.sha256 for part in uploaded.parts)
    return ArchiveDigest(uploaded.size_bytes, uploaded.etag, uploaded.sha256, uploaded.part_bytes, shas)


def rig_before(config: BucketConfig, folder: Path) -> Iterator[Rig]:
    direct = S3ObjectStore(config, transfer=FAST)
    with fault_proxy(config) as (proxy, through):
        yield Rig(proxy, S3ObjectStore(through, transfer=FAST), direct, folder)
    for left in direct.list_uploads(""):
        direct.abort_upload(left.key, left.upload_id)
    direct.delete(KEY)


@pytest.fixture(params=["moto", "rclone"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    yield from rig_before(request.getfixturevalue(f"{request.param}_config"), tmp_path)


@pytest.fixture
def rclone_rig(rclone_config: BucketConfig, tmp_path: Path) -> Iterator[Rig]:
    yield from rig_before(rclone_config, tmp_path)


@pytest.fixture
def moto_rig(moto_config: BucketConfig, tmp_path: Path) -> Iterator[Rig]:
    yield from rig_before(moto_config, tmp_path)


def patience_for(words: str) -> TransferConfig:
    return IMPATIENT if "stall" in words else FAST


def cancel_when_stalled(proxy: FaultProxy, cancelled: threading.Event) -> None:
    def cancel() -> None:
        proxy.stalled.wait(30)
        cancelled.set()

    threading.Thread(target=cancel, daemon=True).start()


@pytest.mark.parametrize("data", [b"", b"x", SMALL, LARGE, LARGE[: 10 * 2**20]], ids=len)
def test_an_archive_survives_upload_and_download_with_its_digests(rig: Rig, data: bytes) -> None:
    uploaded = rig.upload(data)
    assert rig.moved == len(data) == uploaded.size_bytes
    assert uploaded.sha256 == hashlib.sha256(data).hexdigest()
    assert uploaded.part_bytes == FAST.part_bytes
    assert sum(part.size_bytes for part in uploaded.parts) == len(data)
    assert {part.size_bytes for part in uploaded.parts[:-1]} <= {FAST.part_bytes}
    # rclone gives the MD5 of the whole, but answers the completion as S3 does.
    assert uploaded.etag in (rig.direct.head(KEY).etag, multipart_etag(uploaded.parts))
    assert rig.download(digest_of(uploaded)) == data
    assert rig.moved == len(data)


def test_a_small_archive_is_sent_with_one_put(rig: Rig) -> None:
    rig.upload(SMALL)
    assert (rig.proxy.count("put"), rig.proxy.count("part"), rig.proxy.count("create")) == (1, 0, 0)


@pytest.mark.parametrize(
    "words", ["503 ok 500", "429 429 429", "reset 503 ok", "reset-body", "lost", "stall", "expired"]
)
def test_an_upload_survives_faults_of_its_parts(rig: Rig, words: str) -> None:
    rig.proxy.script("part", words)
    uploaded = rig.upload(LARGE, config=patience_for(words))
    rig.proxy.released.set()
    assert rig.moved == len(LARGE)
    assert rig.download(digest_of(uploaded)) == LARGE
    assert list(rig.direct.list_uploads("")) == []


@pytest.mark.parametrize("word", ["503", "reset", "reset-body", "lost", "expired", "flip-request"])
def test_a_single_put_survives_a_fault(rig: Rig, word: str) -> None:
    rig.proxy.script("put", word)
    assert rig.download(digest_of(rig.upload(SMALL))) == SMALL
    assert rig.proxy.count("put") == 2


def test_a_part_damaged_in_transit_is_detected_and_sent_again(rig: Rig) -> None:
    rig.proxy.script("part", "flip-request")
    uploaded = rig.upload(LARGE)
    assert rig.moved == len(LARGE)
    assert rig.download(digest_of(uploaded)) == LARGE
    assert list(rig.direct.list_uploads("")) == []


@pytest.mark.parametrize("word", ["lost", "reset", "503", "error200", "lost reset"])
def test_the_object_decides_whether_a_completion_took_effect(rig: Rig, word: str) -> None:
    rig.proxy.script("complete", word)
    uploaded = rig.upload(LARGE)
    assert rig.download(digest_of(uploaded)) == LARGE
    assert list(rig.direct.list_uploads("")) == []


def test_a_completion_that_always_fails_is_an_error_and_leaves_nothing(rig: Rig) -> None:
    rig.proxy.script("complete", "error200 " * FAST.attempts * 2)
    with pytest.raises(StoreUnavailableError) as caught:
        rig.upload(LARGE)
    assert caught.value.operation == "complete_upload"
    rig.assert_nothing_left()


def test_a_completion_whose_answers_are_all_lost_succeeds_if_the_object_is_there(moto_rig: Rig) -> None:
    moto_rig.proxy.script("complete", "lost " * FAST.attempts)
    uploaded = moto_rig.upload(LARGE)
    assert uploaded.etag == multipart_etag(uploaded.parts)
    assert moto_rig.download(digest_of(uploaded)) == LARGE


def test_a_lost_answer_to_the_creation_leaves_no_second_upload(moto_rig: Rig) -> None:
    moto_rig.proxy.script("create", "lost")
    moto_rig.proxy.script("part", "403")
    with pytest.raises(AccessRefusedError):
        moto_rig.upload(LARGE)
    moto_rig.assert_nothing_left()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("503 " * 40, StoreUnavailableError),
        ("reset " * 40, StoreUnavailableError),
        ("expired " * 40, SignatureExpiredError),
        ("403", AccessRefusedError),
        ("400", StorageError),
        ("307", StorageError),
        ("ok 403", AccessRefusedError),
    ],
)
def test_an_upload_that_fails_permanently_leaves_nothing(rig: Rig, words: str, error: type[StorageError]) -> None:
    rig.proxy.script("part", words)
    with pytest.raises(error) as caught:
        rig.upload(LARGE)
    assert type(caught.value) is error
    assert (caught.value.bucket, caught.value.key) == (rig.direct.bucket, KEY)
    assert rig.moved == 0
    rig.assert_nothing_left()


def test_a_part_is_tried_no_more_often_than_allowed(moto_rig: Rig) -> None:
    moto_rig.proxy.script("put", "503 " * 40)
    with pytest.raises(StoreUnavailableError):
        moto_rig.upload(SMALL)
    assert moto_rig.proxy.count("put") == FAST.attempts


def test_a_put_that_is_always_stored_damaged_is_an_integrity_error(moto_rig: Rig) -> None:
    moto_rig.proxy.script("put", "flip-request flip-request")
    with pytest.raises(IntegrityError):
        moto_rig.upload(SMALL)
    moto_rig.assert_nothing_left()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=len)
def test_a_cancelled_upload_leaves_nothing(rig: Rig, data: bytes) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(TransferCancelledError):
        rig.upload(data, cancelled=cancelled)
    rig.assert_nothing_left()


def test_cancelling_ends_an_upload_that_waits_for_a_silent_store(rig: Rig) -> None:
    cancelled = threading.Event()
    rig.proxy.script("part", "stall stall stall")
    patient = FAST.model_copy(update={"idle_timeout_s": 300})
    cancel_when_stalled(rig.proxy, cancelled)
    with pytest.raises(TransferCancelledError):
        rig.upload(LARGE, config=patient, cancelled=cancelled)
    rig.proxy.released.set()
    rig.assert_nothing_left()


def test_a_file_that_changes_during_the_upload_is_an_error(rig: Rig) -> None:
    def grow(count: int) -> None:
        with (rig.folder / "archive").open("ab") as file:
            file.write(b"more")

    with pytest.raises(IntegrityError):
        upload(rig.store, KEY, rig.file(SMALL), config=FAST, progress=grow, cancelled=threading.Event())
    rig.assert_nothing_left()


@pytest.mark.parametrize(
    "words",
    ["503 ok 500", "429", "reset", "truncate ok truncate", "reset-answer", "stall-answer", "expired", "flip", "short",
     "whole", "wrong-range", "lost"],
)  # fmt: skip
def test_a_download_survives_a_fault_of_one_range(rig: Rig, words: str) -> None:
    uploaded = rig.upload(LARGE)
    rig.proxy.script("get", words)
    assert rig.download(digest_of(uploaded), config=patience_for(words)) == LARGE
    rig.proxy.released.set()
    assert rig.moved == len(LARGE)
    assert rig.proxy.count("get") > PARTS


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("503 " * 40, StoreUnavailableError),
        ("truncate " * 40, StoreUnavailableError),
        ("whole " * 40, IntegrityError),
        ("wrong-range " * 40, IntegrityError),
        ("flip " * 40, IntegrityError),
        ("403", AccessRefusedError),
        ("404", ObjectMissingError),
    ],
)
def test_a_download_that_fails_permanently_leaves_no_file(rig: Rig, words: str, error: type[StorageError]) -> None:
    uploaded = rig.upload(LARGE)
    rig.proxy.script("get", words)
    with pytest.raises(error) as caught:
        rig.download(digest_of(uploaded))
    assert type(caught.value) is error
    assert rig.moved == 0 or error is not StoreUnavailableError
    assert not (rig.folder / "download").exists()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=len)
@pytest.mark.parametrize("knowledge", ["parts", "whole"])
def test_one_flipped_bit_in_the_stored_object_is_an_integrity_error(rig: Rig, data: bytes, knowledge: str) -> None:
    expected = digest_of(rig.upload(data))
    if knowledge == "whole":
        expected = replace(expected, part_bytes=None, parts=())
    damaged = bytearray(data)
    damaged[len(data) // 3] ^= 0x10
    rig.direct.put(KEY, bytes(damaged))
    with pytest.raises(IntegrityError):
        rig.download(expected)
    assert not (rig.folder / "download").exists()


def test_with_an_etag_alone_another_object_is_refused(rig: Rig) -> None:
    expected = replace(digest_of(rig.upload(SMALL)), sha256=None, part_bytes=None, parts=())
    assert rig.download(expected) == SMALL
    rig.direct.put(KEY, SMALL[::-1])
    with pytest.raises(IntegrityError):
        rig.download(expected)


def test_a_foreign_archives_size_is_checked(rig: Rig) -> None:
    rig.direct.put(KEY, SMALL)
    assert rig.download(ArchiveDigest(len(SMALL))) == SMALL
    with pytest.raises(IntegrityError):
        rig.download(ArchiveDigest(len(SMALL) - 1))


def test_an_object_with_the_same_bytes_and_another_etag_is_accepted(rig: Rig) -> None:
    expected = digest_of(rig.upload(LARGE))
    rig.direct.put(KEY, LARGE)
    assert rig.download(expected) == LARGE


def test_an_object_replaced_during_the_download_is_detected(rig: Rig) -> None:
    expected = replace(digest_of(rig.upload(LARGE)), sha256=None, part_bytes=None, parts=())
    replaced = threading.Event()

    def replace_once(count: int) -> None:
        if not replaced.is_set():
            replaced.set()
            rig.direct.put(KEY, LARGE[::-1])

    with pytest.raises(IntegrityError):
        download(
            rig.store,
            KEY,
            rig.folder / "download",
            expected=expected,
            config=FAST.model_copy(update={"concurrency": 1}),
            progress=replace_once,
            cancelled=threading.Event(),
        )
    assert not (rig.folder / "download").exists()


def test_downloading_a_missing_archive_creates_no_file(rig: Rig) -> None:
    with pytest.raises(ObjectMissingError):
        rig.download(ArchiveDigest(10))
    rig.assert_nothing_left()


def test_cancelling_ends_a_download_that_waits_for_a_silent_store(rig: Rig) -> None:
    uploaded = rig.upload(LARGE)
    cancelled = threading.Event()
    rig.proxy.script("get", "stall-answer stall stall-answer")
    patient = FAST.model_copy(update={"idle_timeout_s": 300})
    cancel_when_stalled(rig.proxy, cancelled)
    with pytest.raises(TransferCancelledError):
        rig.download(digest_of(uploaded), config=patient, cancelled=cancelled)
    rig.proxy.released.set()
    assert not (rig.folder / "download").exists()


def test_a_full_disk_is_detected_before_the_first_byte(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded = rig.upload(SMALL)

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "injected")

    monkeypatch.setattr("storage.download.os.posix_fallocate", full)
    with pytest.raises(OSError, match="injected"):
        rig.download(digest_of(uploaded))
    assert not (rig.folder / "download").exists()
    assert rig.proxy.count("get") == 0


def test_every_attempt_gets_a_new_signature(rclone_rig: Rig) -> None:
    uploaded = rclone_rig.upload(SMALL)
    signed: list[str] = []

    class Recording:
        """The store, recording the URLs that it signs."""

        def __getattr__(self, name: str) -> object:
            return getattr(rclone_rig.store, name)

        def presign_get(self, key: str, *, ttl_s: int) -> object:
            request = rclone_rig.store.presign_get(key, ttl_s=ttl_s)
            signed.append(request.url)
            return request

    rclone_rig.proxy.script("get", "503 expired")
    download(
        Recording(),  # type: ignore[arg-type]
        KEY,
        rclone_rig.folder / "download",
        expected=digest_of(uploaded),
        config=FAST,
        progress=lambda count: None,
        cancelled=threading.Event(),
    )
    assert len(signed) == 3


def test_no_log_and_no_error_contains_a_url_or_a_key(rclone_rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    faults = [("part", "403"), ("part", "503 " * 40), ("complete", "error200 " * 40), ("get", "reset " * 40)]
    for operation, words in faults:
        rclone_rig.direct.delete(KEY)
        with pytest.raises(StorageError) as caught:
            if operation == "get":
                digest = digest_of(rclone_rig.upload(LARGE))
                rclone_rig.proxy.script(operation, words)
                rclone_rig.download(digest)
            else:
                rclone_rig.proxy.script(operation, words)
                rclone_rig.upload(LARGE)
        rclone_rig.proxy.clear()
        texts += [str(caught.value), repr(caught.value), repr(caught.value.__dict__)]
    ours = [record for record in caplog.records if record.name != "werkzeug"]  # the access log of a test's own server
    texts += [f"{record.getMessage()} {record.exc_text or ''} {record.args!r}" for record in ours]
    everything = "\n".join(texts)
    for secret in ("X-Amz-Signature", "X-Amz-Credential", "Signature=", ACCESS_KEY, SECRET_KEY, "http://127"):
        assert secret not in everything
    assert everything
