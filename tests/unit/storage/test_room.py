"""The room on a disk, as statvfs(3) reports it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.room import lacks_room

MIB = 1024 * 1024


def disk(monkeypatch: pytest.MonkeyPatch, *, free_bytes: int, inodes: int, free_inodes: int) -> None:
    reported = SimpleNamespace(f_bavail=free_bytes // 4096, f_frsize=4096, f_files=inodes, f_favail=free_inodes)
    monkeypatch.setattr(os, "statvfs", lambda folder: reported)


def test_room_counts_bytes_and_inodes_with_a_margin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk(monkeypatch, free_bytes=9 * MIB, inodes=1000, free_inodes=272)
    assert not lacks_room(tmp_path, 8 * MIB, files=256)
    assert lacks_room(tmp_path, 8 * MIB + 1, files=256)
    assert lacks_room(tmp_path, 8 * MIB, files=257)


def test_a_disk_without_a_limit_of_inodes_lacks_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk(monkeypatch, free_bytes=9 * MIB, inodes=0, free_inodes=0)
    assert not lacks_room(tmp_path, 8 * MIB, files=256)


def test_a_disk_that_cannot_be_asked_counts_as_one_with_room(tmp_path: Path) -> None:
    assert not lacks_room(tmp_path / "absent", 1)
