from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

import pytest

from actors.node.errors import MountError, TreeError
from actors.node.live_entries import LiveEntry, live_entries
from actors.node.survey import Limits, survey

LIMITS = Limits(inodes=1000, source_bytes=10**9, hole_bytes=10**9, depth=64)


def walked(folder: Path, *, start: bytes = b"", depth: int = 64) -> list[LiveEntry]:
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        return list(live_entries(fd, start=start, depth=depth))
    finally:
        os.close(fd)


def odd_tree(folder: Path) -> None:
    for name in ("a/b", "a!", "é", "\udcff\n", "\U0001f600"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_bytes(b"xyz")
    (folder / "link").symlink_to("../\udc80")
    os.mkfifo(folder / "pipe")
    (folder / ".holdfast-0123456789abcdef").write_bytes(b"temporary")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))


def test_a_walk_finds_what_a_backup_lists_in_the_same_order(tmp_path: Path) -> None:
    odd_tree(tmp_path)
    listed: list[LiveEntry] = []

    def add(path: bytes, found: os.stat_result, target: bytes) -> None:
        size = found.st_size if os.path.isfile(os.fsencode(tmp_path) + b"/" + path) and not target else 0
        listed.append(LiveEntry(path, found.st_mode, size, *divmod(found.st_mtime_ns, 10**9), target))

    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        survey(fd, limits=LIMITS, listed=add)
    finally:
        os.close(fd)
    assert walked(tmp_path) == listed
    assert [each.path for each in listed][:5] == [b"", b"a", b"a/b", b"a/b/file", b"a!"]
    assert {each.path: each.target for each in listed}[b"link"] == b"../\x80"


def test_a_walk_begins_at_any_entry(tmp_path: Path) -> None:
    odd_tree(tmp_path)
    everything = walked(tmp_path)
    for number, each in enumerate(everything):
        key = each.path.replace(b"/", b"\0")
        assert walked(tmp_path, start=key) == everything[number:]
        if each.path:
            assert walked(tmp_path, start=key + b"\1") == [
                e for e in everything[number:] if e.path.replace(b"/", b"\0") >= key + b"\1"
            ]


def test_a_walk_of_a_tree_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1/2/3").mkdir(parents=True)
    assert len(walked(tmp_path, depth=4)) == 4
    with pytest.raises(TreeError):
        walked(tmp_path, depth=3)


def test_what_vanishes_during_the_walk_is_left_out(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        walk = live_entries(fd, start=b"", depth=9)
        assert [next(walk).path for _ in range(3)] == [b"", b"a", b"a/file"]
        shutil.rmtree(tmp_path / "b")
        (tmp_path / "b").symlink_to("/etc")
        shutil.rmtree(tmp_path / "c")
        assert [each.path for each in walk] == [b"b"]
    finally:
        os.close(fd)


def test_a_walk_that_is_given_up_leaves_no_file_open(tmp_path: Path) -> None:
    odd_tree(tmp_path)
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    before = len(os.listdir("/proc/self/fd"))
    walk = live_entries(fd, start=b"", depth=9)
    for _ in range(4):
        next(walk)
    del walk
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)


def test_a_file_system_that_does_not_answer_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(fd: int) -> list[str]:
        raise OSError(errno.ENOTCONN, "not connected")

    monkeypatch.setattr(os, "listdir", dead)
    with pytest.raises(MountError):
        walked(tmp_path)
