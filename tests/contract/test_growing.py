"""Parts that are sent while the file is still written: whatever the writer and the store do, the object is the file."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pytest

from storage.config import BucketConfig
from storage.digests import UploadedArchive
from storage.errors import ObjectMissingError, StorageError, StoreUnavailableError
from storage.parts import abort_uploads
from storage.s3 import S3ObjectStore
from storage.transfer import GrowingUpload, SentParts, upload
from tests.support.mount_leaks import wait_until
from tests.support.s3 import FAST, FaultProxy, fault_proxy

KEY = "backups/0d6a0f4e-2c0b-4e0f-8a52-5f0f8e0d9c11/data.sqsh"
PART = FAST.part_bytes
PARTS = 5
CONTENT = random.Random(3).randbytes(PARTS * PART - 12_345)
EARLY = PARTS - 3
"""Parts 2 and 3: part 1 goes last, and a part waits until the file has grown another whole part beyond it."""


@dataclass(slots=True)
class Rig:
    """A store behind a proxy that can fail, and a file that is written by the test itself."""

    proxy: FaultProxy
    store: S3ObjectStore
    path: Path
    begun: list[str] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    moved: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ahead(self, begin: Callable[[], object] | None = None) -> GrowingUpload:
        noted = begin or (lambda: self.begun.append("begun"))
        return GrowingUpload(self.store, KEY, config=FAST, begin=noted, cancelled=self.cancelled)

    def sent_while(self, write: Callable[[BinaryIO], object], ahead: GrowingUpload | None = None) -> SentParts | None:
        """Follows a file while `write` writes it."""
        with ahead or self.ahead() as following:
            following.follow(self.path)
            with self.path.open("wb", buffering=0) as file:
                write(file)
        return following.sent

    def has_sent(self, count: int) -> None:
        assert wait_until(lambda: self.proxy.count("part") >= count), self.proxy.seen

    def progress(self, count: int) -> None:
        with self.lock:
            self.moved += count

    def finish(self, sent: SentParts | None) -> UploadedArchive:
        return upload(
            self.store, KEY, self.path, config=FAST, progress=self.progress, cancelled=self.cancelled, sent=sent
        )

    def check(self, uploaded: UploadedArchive, content: bytes) -> None:
        assert self.store.get(KEY, max_bytes=len(content)).data == content
        assert uploaded.size_bytes == len(content) == self.moved
        assert sum(part.size_bytes for part in uploaded.parts) == len(content)
        assert list(self.store.list_uploads(KEY)) == []
        self.check_threads()

    def check_threads(self) -> None:
        assert [t.name for t in threading.enumerate() if t.name.startswith("transfer")] == []


def rig_before(config: BucketConfig, folder: Path) -> Iterator[Rig]:
    with fault_proxy(config) as (proxy, through):
        rig = Rig(proxy, S3ObjectStore(through, transfer=FAST), folder / "archive")
        yield rig
        abort_uploads(rig.store, KEY)
        rig.store.delete(KEY)


@pytest.fixture
def rig(moto_config: BucketConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr("storage.growing._SILENCE_S", 60.0)  # a busy machine is no silent store
    yield from rig_before(moto_config, tmp_path)


@pytest.fixture
def rclone_rig(rclone_config: BucketConfig, tmp_path: Path) -> Iterator[Rig]:
    yield from rig_before(rclone_config, tmp_path)


def written_as_mksquashfs_does(rig: Rig, *, early: int = EARLY) -> Callable[[BinaryIO], None]:
    """Appends all but the first 96 bytes, waits until the early parts are sent, and then writes these."""

    def write(file: BinaryIO) -> None:
        file.seek(96)
        file.write(CONTENT[96:])
        rig.has_sent(early)
        file.seek(0)
        file.write(CONTENT[:96])

    return write


def test_parts_are_sent_while_the_file_grows_and_none_is_sent_twice(rig: Rig) -> None:
    sent = rig.sent_while(written_as_mksquashfs_does(rig))
    assert sent is not None
    assert sorted(sent.parts) == list(range(1, EARLY + 1))
    assert rig.begun == ["begun"]
    rig.check(rig.finish(sent), CONTENT)
    assert rig.proxy.count("part") == PARTS
    assert rig.proxy.count("create") == 1


def test_a_small_file_is_not_sent_ahead(rig: Rig) -> None:
    sent = rig.sent_while(lambda file: file.write(CONTENT[: 2 * PART]))
    assert (sent, rig.begun, rig.proxy.seen) == (None, [], [])
    rig.check(rig.finish(sent), CONTENT[: 2 * PART])


def test_a_store_that_keeps_early_parts_in_memory_gets_none(rclone_rig: Rig) -> None:
    embedded = rclone_rig
    embedded.store = S3ObjectStore(
        embedded.store._config.model_copy(update={"folder": embedded.path.parent}), transfer=FAST
    )
    sent = embedded.sent_while(lambda file: file.write(CONTENT))
    assert (sent, embedded.begun, embedded.proxy.seen) == (None, [], [])
    embedded.check(embedded.finish(sent), CONTENT)


@pytest.mark.parametrize("where", [PART, 2 * PART + 1, (EARLY + 1) * PART - 1])
def test_a_part_that_changes_after_it_was_sent_begins_the_upload_anew(rig: Rig, where: int) -> None:
    def write(file: BinaryIO) -> None:
        written_as_mksquashfs_does(rig)(file)
        file.seek(where)
        file.write(bytes([CONTENT[where] ^ 1]))

    changed = CONTENT[:where] + bytes([CONTENT[where] ^ 1]) + CONTENT[where + 1 :]
    rig.check(rig.finish(rig.sent_while(write)), changed)
    assert rig.proxy.count("create") == 2


@pytest.mark.parametrize("left", [100, PART, 2 * PART + 5])
def test_a_file_that_is_cut_back_and_written_on_is_sent_as_it_ends(rig: Rig, left: int) -> None:
    def write(file: BinaryIO) -> None:
        written_as_mksquashfs_does(rig)(file)
        file.truncate(left)
        file.seek(left)
        file.write(b"another file's blocks")

    rig.check(rig.finish(rig.sent_while(write)), CONTENT[:left] + b"another file's blocks")


@pytest.mark.parametrize("words", ["503 ok 500", "429 429", "reset", "lost", "expired", "flip-request"])
def test_faults_of_early_parts_are_survived(rig: Rig, words: str) -> None:
    rig.proxy.script("part", words)
    rig.check(rig.finish(rig.sent_while(written_as_mksquashfs_does(rig))), CONTENT)


@pytest.mark.parametrize(("operation", "words"), [("part", "503 " * 40), ("part", "403"), ("create", "503 " * 4)])
def test_a_store_that_fails_in_the_middle_gets_all_parts_after_the_end(rig: Rig, operation: str, words: str) -> None:
    rig.proxy.script(operation, words)

    def write(file: BinaryIO) -> None:
        file.write(CONTENT)
        assert wait_until(lambda: rig.proxy.count(operation) >= min(4, len(words.split())))

    sent = rig.sent_while(write)
    rig.proxy.clear()
    assert sent is None or not sent.parts
    rig.check(rig.finish(sent), CONTENT)


def test_a_store_that_falls_silent_does_not_delay_the_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.growing._SILENCE_S", 0.5)
    rig.proxy.script("part", "ok stall")

    def write(file: BinaryIO) -> None:
        file.write(CONTENT)
        assert rig.proxy.stalled.wait(30)

    sent = rig.sent_while(write)
    assert sent is not None
    assert len(sent.parts) <= 1
    rig.check(rig.finish(sent), CONTENT)


def test_nothing_is_sent_ahead_of_a_backup_that_could_not_begin(rig: Rig) -> None:
    asked = threading.Event()

    def refused() -> None:
        asked.set()
        raise StoreUnavailableError("put", bucket="b")

    def write(file: BinaryIO) -> None:
        file.write(CONTENT)
        assert asked.wait(30)

    sent = rig.sent_while(write, rig.ahead(refused))
    assert (sent, rig.proxy.count("create"), rig.proxy.count("part")) == (None, 0, 0)
    rig.check(rig.finish(sent), CONTENT)


def test_a_writer_that_fails_ends_the_sending_at_once(rig: Rig) -> None:
    rig.proxy.script("part", "ok stall")

    def write(file: BinaryIO) -> None:
        file.write(CONTENT)
        assert rig.proxy.stalled.wait(30)
        raise RuntimeError("the tool has failed")

    with pytest.raises(RuntimeError, match="the tool has failed"):
        rig.sent_while(write)
    rig.check_threads()
    abort_uploads(rig.store, KEY)
    with pytest.raises(ObjectMissingError):
        rig.store.head(KEY)


def test_a_cancelled_backup_ends_the_sending_and_leaves_no_parts(rig: Rig) -> None:
    rig.proxy.script("part", "stall stall stall")

    def write(file: BinaryIO) -> None:
        file.write(CONTENT)
        assert rig.proxy.stalled.wait(30)
        rig.cancelled.set()
        assert wait_until(lambda: list(rig.store.list_uploads(KEY)) == [])

    assert rig.sent_while(write) is None
    with pytest.raises(StorageError):
        rig.finish(None)
    rig.check_threads()
    assert list(rig.store.list_uploads(KEY)) == []


def test_something_else_than_a_file_is_not_followed(rig: Rig) -> None:
    rig.path.mkdir()
    with rig.ahead() as ahead:
        ahead.follow(rig.path)
        assert wait_until(lambda: not any(t.name == "transfer-ahead" for t in threading.enumerate()))
    assert (ahead.sent, rig.begun) == (None, [])
