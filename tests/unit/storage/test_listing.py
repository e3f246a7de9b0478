from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import listing as module
from storage.errors import CorruptMetadataError, ObjectMissingError
from storage.listing import Entry, Listing, ListingWriter, keys_below, sort_key
from storage.ranges import RangedObject
from tests.support.entries import LINK, entry, folder, lstat_of, trees, write_listing
from tests.support.memory_store import MemoryObjectStore

KEY = "backups/x/files.list"


class Shelf:
    """A listing in a store."""

    def __init__(self, folder: Path, entries: list[Entry]) -> None:
        path = folder / "files.list"
        path.unlink(missing_ok=True)
        digest = write_listing(path, entries)
        assert digest is not None
        self.digest, self.data = digest, path.read_bytes()
        self.store = MemoryObjectStore()
        self.store.put(KEY, self.data)

    def listing(self) -> Listing:
        return Listing(RangedObject(self.store, KEY, self.digest.size_bytes), self.digest)

    def all(self) -> list[Entry]:
        return list(self.listing().scan(b"", None, deep=True))

    def below(self, path: bytes, *, deep: bool = False) -> list[bytes]:
        start, end = keys_below(path)
        return [each.path for each in self.listing().scan(start, end, deep=deep)]


TREE = [
    folder(""),
    folder("a"),
    folder("a/b"),
    entry("a/b/c"),
    entry("a/b!"),
    entry("a/d", LINK, target=b"../x\n"),
    entry("a!"),
    entry(b"raw-\xff\n", size=2**40, at=-(2**40)),
]


def test_a_listing_gives_back_what_was_written(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, TREE)
    assert shelf.all() == TREE
    assert (shelf.digest.entries, shelf.digest.size_bytes) == (len(TREE), len(shelf.data))


def test_a_directory_is_listed_with_or_without_what_is_below(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, TREE)
    assert shelf.below(b"") == [b"a", b"a!", b"raw-\xff\n"]
    assert shelf.below(b"a") == [b"a/b", b"a/b!", b"a/d"]
    assert shelf.below(b"a", deep=True) == [b"a/b", b"a/b/c", b"a/b!", b"a/d"]
    assert shelf.below(b"a/b!") == shelf.below(b"none") == []


@given(trees(), st.integers(min_value=1, max_value=400))
def test_any_tree_is_read_back_and_searched_whatever_the_blocks_are(
    tmp_path_factory: pytest.TempPathFactory, tree: list[Entry], block_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_BYTES", block_bytes)
        shelf = Shelf(tmp_path_factory.mktemp("tree"), tree)
    assert shelf.all() == tree
    for each in tree:
        below = [e.path for e in tree if each.path == b"" or e.path.startswith(each.path + b"/")]
        below = [path for path in below if path]
        assert shelf.below(each.path, deep=True) == below
        assert shelf.below(each.path) == [p for p in below if p.rpartition(b"/")[0] == each.path]


def test_a_page_of_a_large_listing_reads_a_piece_of_it_only(tmp_path: Path) -> None:
    many = sorted((entry(os.urandom(100).hex()) for _ in range(30_000)), key=lambda each: each.path)
    shelf = Shelf(tmp_path, [folder(""), *many])
    assert shelf.digest.size_bytes > 3 * 2**20
    read: list[int] = []
    get = shelf.store.get_range

    def counting(key: str, *, start: int, size_bytes: int) -> object:
        read.append(size_bytes)
        return get(key, start=start, size_bytes=size_bytes)

    shelf.store.get_range = counting  # type: ignore[method-assign, assignment]
    scan = shelf.listing().scan(sort_key(many[15_000].path), None, deep=True)
    assert [next(scan) for _ in range(10)] == many[15_000:15_010]
    assert sum(read) < 2 * 2**20


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_changed_byte_anywhere_is_noticed(tmp_path: Path, place: str) -> None:
    shelf = Shelf(tmp_path, TREE)
    data = bytearray(shelf.data)
    at = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[place]
    data[at] ^= 1
    shelf.store.put(KEY, bytes(data))
    with pytest.raises(CorruptMetadataError):
        shelf.all()


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 10_000])
def test_another_object_in_its_place_is_refused(tmp_path: Path, data: bytes) -> None:
    shelf = Shelf(tmp_path, TREE)
    shelf.store.put(KEY, data)
    with pytest.raises(CorruptMetadataError):
        shelf.all()


def test_a_listing_that_is_gone_is_missing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, TREE)
    shelf.store.delete(KEY)
    with pytest.raises(ObjectMissingError):
        shelf.all()


def test_a_listing_that_would_be_too_large_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    path = tmp_path / "files.list"
    assert write_listing(path, [folder(""), *(entry(f"{n:04}") for n in range(1000))]) is None
    assert not path.exists()


def test_a_listing_that_the_disk_cannot_hold_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_listing(Path("/dev/full/none"), TREE) is None
    assert write_listing(Path("/proc/files.list"), TREE) is None


def test_a_listing_that_is_begun_anew_holds_only_what_came_after(tmp_path: Path) -> None:
    writer = ListingWriter(tmp_path / "files.list")
    for number in range(10_000):
        writer.add(b"%06d" % number, lstat_of(entry(f"{number:06}")), b"")
    writer.begin_anew()
    for each in TREE:
        writer.add(each.path, lstat_of(each), each.target)
    digest = writer.finish()
    assert digest == write_listing(tmp_path / "other.list", TREE)
    assert (tmp_path / "files.list").read_bytes() == (tmp_path / "other.list").read_bytes()


def test_a_listing_that_is_not_completed_leaves_no_file(tmp_path: Path) -> None:
    writer = ListingWriter(tmp_path / "files.list")
    writer.add(b"", lstat_of(folder("")), b"")
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_inflated_beyond_its_record_is_refused(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, [folder(""), entry("x" * 200), entry("y" * 200)])
    reader = shelf.listing()
    with pytest.raises(CorruptMetadataError):
        reader._inflated(shelf.data[: -shelf.digest.index_bytes], 10)
