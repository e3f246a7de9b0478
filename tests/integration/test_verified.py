"""The node's record of verified archives: an archive on record is trusted, and no other."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.node.errors import DamagedCopyError
from actors.node.verified import GoOn, Verified, read_digest, stamp_of
from tests.support.damage import flip, flip_with_old_times, flipped

CONTENT = b"an archive" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Counted:
    """Reads digests, and counts the readings."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, fd: int, go_on: GoOn) -> str:
        self.count += 1
        return read_digest(fd, go_on)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def verified(tmp_path: Path, counted: Counted) -> Verified:
    return Verified(tmp_path / "verified", boot="first", digest=counted)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive.sqsh"
    path.write_bytes(CONTENT)
    return path


def records(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "verified").iterdir() if not path.name.startswith(".")]


def test_an_archive_is_read_once_and_then_only_its_stamp_is_compared(
    verified: Verified, archive: Path, counted: Counted
) -> None:
    assert not verified.holds(archive, SHA256)
    for _ in range(3):
        verified.check(archive, SHA256)
    assert counted.count == 1
    assert verified.holds(archive, SHA256)


def test_after_a_reboot_an_archive_is_read_again(verified: Verified, archive: Path, tmp_path: Path) -> None:
    verified.check(archive, SHA256)
    counted = Counted()
    rebooted = Verified(tmp_path / "verified", boot="second", digest=counted)
    assert not rebooted.holds(archive, SHA256)
    for _ in range(2):
        rebooted.check(archive, SHA256)
    assert counted.count == 1


def replaced_with_its_old_time(path: Path) -> None:
    status, other = path.stat(), path.with_name("other")
    other.write_bytes(bytes(len(CONTENT)))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def turned_into_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def turned_into_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def turned_into_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "one flipped bit": flip,
    "a flipped bit and the old time": flip_with_old_times,
    "truncated": lambda path: os.truncate(path, 5000),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, len(CONTENT) + 1),
    "replaced": replaced_with_its_old_time,
    "missing": lambda path: path.unlink(),
    "a symbolic link": turned_into_a_link,
    "a directory": turned_into_a_directory,
    "a pipe": turned_into_a_pipe,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_changed_archive_is_never_accepted(verified: Verified, archive: Path, tmp_path: Path, damage: str) -> None:
    verified.check(archive, SHA256)
    DAMAGE[damage](archive)
    assert not verified.holds(archive, SHA256)
    for _ in range(2):
        with pytest.raises(DamagedCopyError):
            verified.check(archive, SHA256)
        with pytest.raises(DamagedCopyError):
            verified.link(archive, SHA256, tmp_path / "link")
    assert not os.path.lexists(tmp_path / "link")


def test_an_archive_that_cannot_be_read_counts_as_damaged(archive: Path, tmp_path: Path) -> None:
    def broken(fd: int, go_on: GoOn) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(DamagedCopyError):
        Verified(tmp_path / "verified", digest=broken).check(archive, SHA256)


def test_an_archive_that_changes_while_it_is_read_is_not_recorded(archive: Path, tmp_path: Path) -> None:
    def reads_and_writes(fd: int, go_on: GoOn) -> str:
        found = read_digest(fd, go_on)
        flip(archive)
        return found

    verified = Verified(tmp_path / "verified", digest=reads_and_writes)
    with pytest.raises(DamagedCopyError):
        verified.check(archive, SHA256)
    assert records(tmp_path) == []


@pytest.mark.parametrize("change", [lambda p: p.chmod(0o666), lambda p: os.chown(p, 1000, 1000)])
def test_an_archive_with_other_permissions_is_read_again_and_made_private(
    verified: Verified, archive: Path, counted: Counted, change: Callable[[Path], None]
) -> None:
    verified.check(archive, SHA256)
    change(archive)
    verified.check(archive, SHA256)
    status = archive.stat()
    assert (counted.count, status.st_mode & 0o7777, status.st_uid, status.st_gid) == (2, 0o400, 0, 0)


def test_adding_and_removing_links_costs_no_reading(
    verified: Verified, archive: Path, tmp_path: Path, counted: Counted
) -> None:
    verified.check(archive, SHA256)
    folder = tmp_path / "links"
    folder.mkdir()
    verified.link(archive, SHA256, tmp_path / "first")
    verified.link(tmp_path / "first", SHA256, folder / f"{SHA256}.sqsh")
    verified.replace(archive, SHA256, tmp_path / "first")
    verified.unlink(archive, SHA256)
    verified.check(tmp_path / "first", SHA256)
    verified.unlink(tmp_path / "first", SHA256)
    verified.check(folder / f"{SHA256}.sqsh", SHA256)
    assert counted.count == 1
    verified.unlink_all(folder)
    assert list(folder.iterdir()) == []
    assert records(tmp_path) == []


def test_a_link_that_is_there_already_costs_no_reading(
    verified: Verified, archive: Path, tmp_path: Path, counted: Counted
) -> None:
    verified.link(archive, SHA256, tmp_path / "link")
    with pytest.raises(FileExistsError):
        verified.link(archive, SHA256, tmp_path / "link")
    assert verified.holds(archive, SHA256)
    verified.check(tmp_path / "link", SHA256)
    assert counted.count == 1


def test_a_link_does_not_make_a_changed_archive_good(verified: Verified, archive: Path, tmp_path: Path) -> None:
    verified.check(archive, SHA256)
    os.link(archive, tmp_path / "other")
    flip(archive)
    verified.unlink(archive, SHA256)
    with pytest.raises(DamagedCopyError):
        verified.check(tmp_path / "other", SHA256)


@pytest.mark.parametrize("lies", ["a directory", "another file", "nothing", "a symbolic link"])
def test_anything_at_the_links_path_is_replaced(verified: Verified, archive: Path, tmp_path: Path, lies: str) -> None:
    target = tmp_path / "target"
    if lies == "a directory":
        (target / "inside").mkdir(parents=True)
    elif lies == "another file":
        target.write_text("damaged")
    elif lies == "a symbolic link":
        target.symlink_to(archive)
    verified.replace(archive, SHA256, target)
    assert verified.holds(target, SHA256)
    assert target.samefile(archive)
    assert not target.is_symlink()


RECORD_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b" ",
    "wrong types": lambda data: b'{"boot": 1, "sha256": [], "file": null}',
    "no JSON": lambda data: b"\xff" * len(data),
}


@pytest.mark.parametrize("damage", RECORD_DAMAGE)
def test_a_damaged_record_costs_one_reading(
    verified: Verified, archive: Path, tmp_path: Path, counted: Counted, damage: str
) -> None:
    verified.check(archive, SHA256)
    (record,) = records(tmp_path)
    record.write_bytes(RECORD_DAMAGE[damage](record.read_bytes()))
    assert not verified.holds(archive, SHA256)
    for _ in range(2):
        verified.check(archive, SHA256)
    assert counted.count == 2


def test_a_record_with_any_flipped_bit_is_rejected(verified: Verified, archive: Path, tmp_path: Path) -> None:
    verified.check(archive, SHA256)
    (record,) = records(tmp_path)
    whole = record.read_bytes()
    for data in flipped(whole):
        record.write_bytes(data)
        assert not verified.holds(archive, SHA256)
    record.write_bytes(whole)
    assert verified.holds(archive, SHA256)


def test_an_archive_can_be_checked_though_its_record_cannot_be_written(
    archive: Path, tmp_path: Path, counted: Counted
) -> None:
    verified = Verified(tmp_path / "verified", boot="first", digest=counted)
    verified.check(archive, SHA256)
    (record,) = records(tmp_path)
    record.unlink()
    (record / "in the way").mkdir(parents=True)
    for _ in range(2):
        verified.check(archive, SHA256)
    assert counted.count == 3


def test_simultaneous_checks_of_an_archive_read_it_once(archive: Path, tmp_path: Path) -> None:
    begun, go, counted = threading.Event(), threading.Event(), Counted()

    def slow(fd: int, go_on: GoOn) -> str:
        begun.set()
        assert go.wait(60)
        return counted(fd, go_on)

    verified = Verified(tmp_path / "verified", digest=slow)
    threads = [threading.Thread(target=verified.check, args=(archive, SHA256)) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    go.set()
    for thread in threads:
        thread.join(60)
    assert counted.count == 1
    assert verified.holds(archive, SHA256)


def test_a_check_can_be_cancelled(verified: Verified, archive: Path) -> None:
    def cancelled() -> None:
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        verified.check(archive, SHA256, go_on=cancelled)
    assert not verified.holds(archive, SHA256)


def test_a_doubted_archive_is_read_again_through_each_of_its_links(
    verified: Verified, archive: Path, tmp_path: Path, counted: Counted
) -> None:
    link = tmp_path / "link"
    stamp = verified.link(archive, SHA256, link)
    verified.doubt(archive, SHA256)
    assert not verified.holds(link, SHA256)
    assert stamp_of(link).has_content_of(stamp)
    assert verified.check(link, SHA256) != stamp
    assert counted.count == 2


def test_a_digest_is_recorded_unless_the_file_was_changed_since(verified: Verified, archive: Path) -> None:
    before = stamp_of(archive)
    verified.note(archive, SHA256, as_of=before)
    assert verified.holds(archive, SHA256)
    flip(archive)
    verified.note(archive, SHA256, as_of=before)
    assert not verified.holds(archive, SHA256)


def test_records_of_files_that_are_gone_are_pruned(verified: Verified, archive: Path, tmp_path: Path) -> None:
    verified.check(archive, SHA256)
    inode, now = stamp_of(archive).inode, time.time() + 1
    (tmp_path / "verified" / f"{'0' * 64}-17").write_text("of another boot")
    assert verified.prune({(SHA256, inode)}, older_than=now) == 1
    assert verified.holds(archive, SHA256)
    assert verified.prune(set(), older_than=now - 3600) == 0
    assert verified.prune(set(), older_than=now) == 1
    assert records(tmp_path) == []
