from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from actors.node.archive_cache import ArchiveCache

CONTENT = b"an archive"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def never(work: Path) -> tuple[Path, str]:
    pytest.fail("the cache has the archive")


def made(work: Path) -> tuple[Path, str]:
    path = work / "made"
    path.write_bytes(CONTENT)
    return path, SHA256


@pytest.fixture
def cache(tmp_path: Path) -> ArchiveCache:
    cache = ArchiveCache(tmp_path / "cache", max_bytes=2**20)
    (tmp_path / "archive").write_bytes(CONTENT)
    (tmp_path / "cache").mkdir()
    cache.adopt("some-backup", tmp_path / "archive", SHA256)
    return cache


def test_a_layer_is_taken_from_the_backup_whose_archive_it_is(cache: ArchiveCache, tmp_path: Path) -> None:
    found, was_cached = cache.obtain(SHA256, tmp_path / "link", never, sha256=SHA256)
    assert was_cached and found.path.read_bytes() == CONTENT
    assert len(cache.entries()) == 1


def test_a_backup_does_not_take_the_archive_of_another(cache: ArchiveCache, tmp_path: Path) -> None:
    _, was_cached = cache.obtain("other-backup", tmp_path / "link", made, sha256=SHA256)
    assert not was_cached and len(cache.entries()) == 2


def test_a_damaged_archive_of_a_backup_is_no_layer(cache: ArchiveCache, tmp_path: Path) -> None:
    (entry,) = cache.entries()
    entry.path.chmod(0o600)
    entry.path.write_bytes(b"AN ARCHIVE")
    _, was_cached = cache.obtain(SHA256, tmp_path / "link", made, sha256=SHA256)
    assert not was_cached
    assert [entry.path.read_bytes() for entry in cache.entries()] == [CONTENT]
