"""Foreign archives that unpack to more than is allowed, or than the disk holds."""

from __future__ import annotations

import os
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.node.errors import NoSpaceLeftError, PathTypeError, TreeError
from actors.node.survey import Limits
from tests.integration.test_archiver import MIB, Setup
from tests.integration.test_sandbox_failures import small_disk

LIMITS = Limits(inodes=2000, source_bytes=8 * MIB, hole_bytes=2**40, depth=300)
LAX = Limits(inodes=2000, source_bytes=2**40, hole_bytes=2**40, depth=300)


def zeros(tree: Path, *, mib: int = 9) -> None:
    (tree / "zeros").write_bytes(bytes(mib * MIB))


def copies(tree: Path) -> None:
    for number in range(9):
        (tree / str(number)).write_bytes(bytes(MIB))


def names_of_entries(tree: Path) -> None:
    """Makes file names that end their line in a listing, and begin another line with size 0."""
    for number in range(9):
        (tree / f"{number}\n-rw-r--r-- 0").mkdir()
        (tree / f"{number}\n-rw-r--r-- 0" / "0 0 2026-01-01 00:00 file").write_bytes(bytes(MIB))


def hole(tree: Path) -> None:
    with (tree / "hole").open("wb") as file:
        file.truncate(64 * MIB)


def many(tree: Path) -> None:
    for number in range(2001):
        (tree / str(number)).touch()


def folders(tree: Path) -> None:
    for number in range(2001):
        (tree / str(number)).mkdir()


BOMBS: tuple[Callable[[Path], None], ...] = (zeros, copies, names_of_entries, hole, many, folders)


def foreign(folder: Path, fill: Callable[[Path], None]) -> Path:
    """An archive as a stranger might make it: without holes, so that every zero byte is written when it is unpacked."""
    (folder / "theirs").mkdir()
    fill(folder / "theirs")
    archive = folder / "theirs.sqsh"
    options = ["-no-sparse", "-quiet", "-no-progress", "-noappend"]
    subprocess.run(["mksquashfs", str(folder / "theirs"), str(archive), *options], check=True)
    return archive


def unpacked_bytes(folder: Path) -> int:
    said = subprocess.run(["du", "-sB1", str(folder)], check=True, capture_output=True, text=True).stdout
    return int(said.split()[0])


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_an_archive_beyond_the_limits_is_refused_before_it_is_unpacked(
    tmp_path: Path, bomb: Callable[[Path], None]
) -> None:
    setup, archive = Setup(tmp_path, LIMITS), foreign(tmp_path, bomb)
    spool = setup.spool()
    with pytest.raises(TreeError, match="more than"):
        setup.archiver.convert(archive, spool, cancelled=threading.Event())
    assert unpacked_bytes(spool) < 64 * 1024


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "small"
    point.mkdir()
    with small_disk(point, "128m"):
        point.chmod(0o711)
        yield point


def test_unpacking_stops_once_half_of_the_free_disk_is_used(tmp_path: Path, small: Path) -> None:
    setup, archive = Setup(tmp_path, LAX), foreign(tmp_path, lambda tree: zeros(tree, mib=1024))
    with pytest.raises(NoSpaceLeftError):
        setup.archiver.convert(archive, small, cancelled=threading.Event())


def test_an_archive_that_fits_is_converted_where_the_disk_is_small(tmp_path: Path, small: Path) -> None:
    setup, archive = Setup(tmp_path, LAX), foreign(tmp_path, zeros)
    made = setup.archiver.convert(archive, small, cancelled=threading.Event())
    assert made.found.source_bytes == 9 * MIB


def test_holes_in_a_foreign_archive_take_no_room_on_the_disk(tmp_path: Path, small: Path) -> None:
    def fill(tree: Path) -> None:
        with (tree / "hole").open("wb") as file:
            file.truncate(1024 * MIB)

    (tmp_path / "theirs").mkdir()
    fill(tmp_path / "theirs")
    archive = tmp_path / "theirs.sqsh"
    subprocess.run(["mksquashfs", str(tmp_path / "theirs"), str(archive), "-quiet", "-no-progress"], check=True)
    made = Setup(tmp_path, LAX).archiver.convert(archive, small, cancelled=threading.Event())
    assert made.found.hole_bytes >= 1024 * MIB


def test_a_directory_with_too_many_names_is_refused_without_reading_them_all(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    for number in range(20_000):
        os.close(os.open(setup.work / f"{number:0100}", os.O_CREAT))
    tracemalloc.start()
    try:
        with pytest.raises(PathTypeError, match="more than 100"):
            setup.tree.entries("/workspace", limit=100)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
