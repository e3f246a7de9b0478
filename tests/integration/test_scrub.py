"""The scrub finds damage on the disk that the record of verified archives misses; sandboxes then get right data."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from actors.node.archive_cache import ArchiveCache
from actors.node.errors import DamagedCopyError
from actors.node.verified import Verified
from actors.service.node_sweeper import NodeSweeper
from actors.service.scrub import Scrub, Scrubbed, digest_on_disk
from tests.integration.test_damaged_copies import (
    NOISE,
    assert_whole,
    cached,
    events,
    filled,
    kept,
    layered,
    record,
)
from tests.support.damage import flip_unseen
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import Node, restore, sh


def scrub_of(node: Node) -> Scrub:
    return NodeSweeper(node.config.node, None).scrub


def test_a_round_reads_each_archive_once_and_finds_nothing_in_good_ones(kernel_node: Node) -> None:
    box, handle, _ = layered(kernel_node)
    fork = kernel_node.sandbox("fork")
    restore(fork, handle)
    assert scrub_of(kernel_node).round() == Scrubbed(read=1)
    entry = cached(kernel_node, handle)
    assert record(kernel_node).holds(entry, entry.stem.partition("_")[2])
    assert sh(box, "cat later") == "later\n"


def test_a_round_goes_on_when_a_sandbox_is_removed_as_its_archives_are_listed(
    kernel_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    layered(kernel_node)
    leaving = kernel_node.home("leaving") / "archives"
    leaving.mkdir(parents=True)
    scandir = os.scandir

    def listed(path: Any) -> Any:
        if path == leaving:  # other threads list open directories meanwhile
            leaving.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)
    assert scrub_of(kernel_node).round() == Scrubbed(read=1)
    assert not leaving.exists()


def test_a_damaged_cache_entry_is_removed_without_any_call(kernel_node: Node) -> None:
    box, handle, noise = filled(kernel_node)
    entry = cached(kernel_node, handle)
    flip_unseen(entry, entry.stem.partition("_")[2], record(kernel_node))
    assert scrub_of(kernel_node).round() == Scrubbed(read=1, damaged=[entry.name])
    assert not entry.exists()
    restore(box, handle)
    assert sh(box, NOISE) == noise


def test_an_awake_sandbox_over_a_damaged_archive_is_repaired_without_any_call(node: Node) -> None:
    box, handle, noise = layered(node)
    (archive,) = kept(node)
    inode = archive.stat().st_ino
    flip_unseen(archive, archive.stem, record(node))
    found = scrub_of(node).round()
    assert sorted(found.damaged) == sorted([f"{handle.id}_{archive.stem}.sqsh", archive.name])
    assert wait_until(lambda: events(box) == [("/workspace", handle.id)], timeout_s=30)
    assert wait_until(lambda: box.is_awake and kept(node)[0].stat().st_ino != inode, timeout_s=30)
    assert_whole(box, noise)
    assert scrub_of(node).round().damaged == []


def test_a_sandbox_asleep_over_a_damaged_archive_wakes_with_right_data(node: Node) -> None:
    box, handle, noise = layered(node)
    box.close()
    (archive,) = kept(node)
    flip_unseen(archive, archive.stem, record(node))
    assert archive.name in scrub_of(node).round().damaged
    again = node.sandbox()
    assert_whole(again, noise)
    assert events(again) == [("/workspace", handle.id)]


def test_a_round_records_archives_so_that_their_first_use_after_a_boot_is_cheap(kernel_node: Node) -> None:
    _, handle, _ = filled(kernel_node)
    entry = cached(kernel_node, handle)
    for file in kernel_node.layout.verified.glob("[!.]*"):
        file.unlink()
    scrub_of(kernel_node).round()
    assert record(kernel_node).holds(entry, entry.stem.partition("_")[2])


def test_a_round_is_rate_limited_and_keeps_the_order_of_use(tmp_path: Path) -> None:
    cache = ArchiveCache(tmp_path / "cache", max_bytes=10_000_000)
    archive = tmp_path / "archive"
    archive.write_bytes(os.urandom(1_000_000))
    cache.adopt("one", archive, digest_on_disk(archive))
    (entry,) = (tmp_path / "cache").glob("*.sqsh")
    os.utime(entry, (1000, 1000))
    began = time.monotonic()
    done = Scrub(cache, tmp_path / "boxes", Verified(tmp_path / "verified"), bytes_per_s=2_000_000).round()
    assert done == Scrubbed(read=1)
    assert time.monotonic() - began >= 0.4
    assert entry.stat().st_atime == 1000


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 1024 * 1024, 1024 * 1024 + 4096, 3_000_001])
def test_the_digest_read_from_the_disk_is_that_of_the_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    expected = subprocess.run(["sha256sum", str(path)], capture_output=True, check=True).stdout.split()[0].decode()
    assert digest_on_disk(path) == expected


def test_an_archive_that_the_disk_cannot_read_counts_as_damaged(scratch: Path) -> None:
    """A file in a squashfs with overwritten blocks: the kernel answers EIO to its reader."""
    tree, point = scratch / "tree", scratch / "point"
    for folder in (tree, point):
        folder.mkdir()
    (tree / "file").write_bytes(b"compressible " * 100_000)
    (tree / "file").chmod(0o400)
    sha256 = digest_on_disk(tree / "file")
    quiet = ["-quiet", "-no-progress", "-comp", "zstd"]
    subprocess.run(["mksquashfs", "tree", "disk", *quiet], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    with (scratch / "disk").open("r+b") as disk:
        disk.seek(96)  # the file's blocks follow the superblock
        disk.write(bytes(64))
    subprocess.run(["mount", "-o", "loop,ro", str(scratch / "disk"), str(point)], check=True)
    with pytest.raises(OSError, match="Input/output error"):
        digest_on_disk(point / "file")
    with pytest.raises(DamagedCopyError):
        Verified(scratch / "verified").check(point / "file", sha256)
