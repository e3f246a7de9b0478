"""Fingerprints are read as they were written or not at all, and doubt every file that may change without a trace."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.node.errors import NoLayerError
from actors.node.fingerprints import (
    DIRECTORY,
    DOUBTFUL,
    Clock,
    Fingerprints,
    Header,
    Recorder,
    check_clock,
    clock_lead_ns,
    mapped_files,
)
from actors.node.verified import boot_id
from tests.support.mount_leaks import wait_until

NO_USER = 2**31 - 7
COARSE = 5
STATE = b"s" * len(DOUBTFUL)
OTHER = b"o" * len(DOUBTFUL)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def recorded(folder: Path, boot: str | None = None) -> Path:
    recorder = Recorder(folder / "new")
    recorder.add("/below", OTHER, {})
    recorder.add("", STATE, {"a": STATE, "new\nline \udcff": DOUBTFUL, "below": DIRECTORY})
    recorder.finish(Header(1, 2, "backup", boot or boot_id(), 3), folder / "kept" / "place")
    return folder / "kept" / "place"


def test_what_was_recorded_is_found_again(tmp_path: Path) -> None:
    found = Fingerprints.find(recorded(tmp_path))
    assert found is not None and found.header == Header(1, 2, "backup", boot_id(), 3)
    root = {".": STATE, "a": STATE, "new\nline \udcff": DOUBTFUL, "below": DIRECTORY}
    assert (found.directory(""), found.directory("/below")) == (root, {".": OTHER})
    with pytest.raises(NoLayerError):
        found.directory("/a")
    assert not (tmp_path / "new").exists()


def test_fingerprints_that_find_no_room_are_given_up_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "new").symlink_to("/dev/full")
    recorder = Recorder(tmp_path / "new")
    for number in range(100):
        recorder.add(f"/{number}", STATE, {"x" * 200: STATE})
    recorder.finish(Header(1, 2, "backup", boot_id(), 3), tmp_path / "kept")
    recorder = Recorder(Path("/dev/full"))
    recorder.add("", STATE, {})
    with pytest.raises(OSError):
        recorder.finish(Header(1, 2, "backup", boot_id(), 3), tmp_path / "kept")
    recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_fingerprints_of_an_earlier_boot_are_not_used(tmp_path: Path) -> None:
    assert Fingerprints.find(recorded(tmp_path, boot="earlier")) is None


def test_damaged_fingerprints_are_not_used(tmp_path: Path) -> None:
    kept = recorded(tmp_path)
    whole = kept.read_bytes()
    for at in range(0, len(whole), 7):
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert Fingerprints.find(kept) is None
        kept.write_bytes(whole[:at])
        assert Fingerprints.find(kept) is None
    kept.unlink()
    assert Fingerprints.find(kept) is None


def test_a_file_that_was_changed_just_now_is_doubtful_and_later_is_not(tmp_path: Path, folder: int) -> None:
    racy = Clock(folder, NO_USER)
    (tmp_path / "file").write_text("first")
    found = (tmp_path / "file").stat()
    state = racy.state(found)
    assert racy.lasting(found, state) == DOUBTFUL
    assert wait_until(lambda: time.time_ns() > found.st_ctime_ns + 100_000_000, timeout_s=20)
    assert Clock(folder, NO_USER).lasting(found, state) == state


def test_a_file_is_doubtful_while_the_clock_of_file_times_stands_still(
    tmp_path: Path, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = time.time_ns() - 5 * 10**9 + 1
    clocks = {time.CLOCK_BOOTTIME: 0, COARSE: long_ago}
    monkeypatch.setattr(time, "clock_gettime_ns", clocks.__getitem__)
    assert Clock(folder, NO_USER).lasting(status(tmp_path, ctime_ns=long_ago), STATE) == DOUBTFUL
    clocks[COARSE] += 30_000_000
    assert Clock(folder, NO_USER).lasting(status(tmp_path, ctime_ns=long_ago), STATE) == STATE


def test_a_file_with_times_in_whole_seconds_is_doubtful(tmp_path: Path, folder: int) -> None:
    clock, long_ago = Clock(folder, NO_USER), time.time_ns() // 10**9 - 1000
    old, whole = (status(tmp_path, ctime_ns=long_ago * 10**9 + part) for part in (1, 0))
    assert clock.lasting(old, STATE) == STATE
    assert clock.lasting(whole, STATE) == DOUBTFUL


def test_a_file_of_another_device_is_doubtful(tmp_path: Path, folder: int) -> None:
    found = status(tmp_path, ctime_ns=1, device=tmp_path.stat().st_dev + 1)
    assert Clock(folder, NO_USER).lasting(found, STATE) == DOUBTFUL


def status(path: Path, *, ctime_ns: int, device: int | None = None) -> os.stat_result:
    found = path.stat()
    visible = list(found[:10])
    visible[2] = found.st_dev if device is None else device
    return os.stat_result(visible, {"st_ctime_ns": ctime_ns, "st_mtime_ns": ctime_ns})


def test_fingerprints_from_before_the_clock_was_set_back_are_not_used() -> None:
    now = clock_lead_ns()
    check_clock(Header(1, 2, "backup", boot_id(), now))
    check_clock(Header(1, 2, "backup", boot_id(), now - 3600 * 10**9))  # it was set forward
    with pytest.raises(NoLayerError, match="set back"):
        check_clock(Header(1, 2, "backup", boot_id(), now + 2 * 10**9))


def test_a_change_with_the_old_times_and_size_changes_the_state(tmp_path: Path, folder: int) -> None:
    clock, file = Clock(folder, NO_USER), tmp_path / "file"
    file.write_text("first")
    before = file.stat()
    assert wait_until(lambda: time.time_ns() > before.st_ctime_ns + 50_000_000, timeout_s=20)
    file.write_text("other")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert clock.state(file.stat()) != clock.state(before)


@pytest.mark.parametrize("first_thread_ends", [False, True])
def test_a_file_in_a_shared_mapping_of_a_process_of_the_sandbox_is_doubtful(
    tmp_path: Path, folder: int, first_thread_ends: bool
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * mmap.PAGESIZE)
    found, uid = file.stat(), 61_501 if os.getuid() == 0 else os.getuid()
    reading, writing = os.pipe()
    with file.open("r+b") as opened:
        child = os.fork()
        if child == 0:
            os.setuid(uid)
            held = mmap.mmap(opened.fileno(), 0)
            if first_thread_ends:
                threading.Thread(target=signal.pause).start()
            os.write(writing, held[:1])
            ctypes.CDLL(None).pthread_exit(None) if first_thread_ends else signal.pause()
    try:
        assert os.read(reading, 1) == b"x"
        if first_thread_ends:  # then /proc/<pid>/maps is empty
            assert wait_until(lambda: "(zombie)" in Path(f"/proc/{child}/status").read_text(), timeout_s=20)
        assert found.st_ino in mapped_files(found.st_dev, uid)
        clock = Clock(folder, uid)
        assert clock.lasting(found, clock.state(found)) == DOUBTFUL
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert found.st_ino not in mapped_files(found.st_dev, uid)
