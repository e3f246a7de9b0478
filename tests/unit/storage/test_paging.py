from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import paging
from storage.errors import InvalidCursorError
from storage.listing import Entry
from storage.paging import entry_page, find_entry
from tests.support.entries import KnownContents, entry, folder, in_order, trees

BELOW = [folder(""), folder("d"), *(entry(f"d/{n}") for n in range(5)), folder("d/sub"), entry("d/sub/x"), entry("e")]


def paged(contents: KnownContents, directory: bytes, *, recursive: bool, limit: int) -> list[Entry]:
    found: list[Entry] = []
    cursor = None
    while True:
        page = entry_page(contents, directory, recursive=recursive, limit=limit, cursor=cursor)
        assert len(page.entries) <= limit
        found += page.entries
        cursor = page.cursor
        if cursor is None:
            return found
        assert page.entries, "a page that is not the last has entries"
        assert len(cursor) <= 1024


@given(trees(), st.integers(1, 5), st.booleans(), st.integers(1, 3))
def test_pages_of_any_tree_give_each_entry_once(
    tree: list[Entry], limit: int, recursive: bool, prefix_bytes: int
) -> None:
    contents = KnownContents(tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "_PREFIX_BYTES", prefix_bytes)
        for directory in (each.path for each in tree if each.is_directory):
            below = [e for e in tree if e.path and (not directory or e.path.startswith(directory + b"/"))]
            wanted = below if recursive else [e for e in below if e.path.rpartition(b"/")[0] == directory]
            assert paged(contents, directory, recursive=recursive, limit=limit) == wanted


def test_a_page_of_very_long_paths_is_short() -> None:
    deep = in_order([folder(""), *(entry(b"/".join([b"x" * 250] * 700) + b"%d" % n) for n in range(30))])
    contents = KnownContents(deep)
    page = entry_page(contents, b"", recursive=True, limit=1000)
    assert 0 < len(page.entries) < 10
    assert paged(contents, b"", recursive=True, limit=1000) == deep[1:]


def test_an_entry_is_found_by_its_path() -> None:
    contents = KnownContents(in_order(BELOW))
    assert find_entry(contents, b"") == folder("")
    assert find_entry(contents, b"d/sub/x") == entry("d/sub/x")
    assert find_entry(contents, b"d/su") is None


@pytest.mark.parametrize(
    "cursor", ["", ".", "x", "eA==", "eA==.x", "eA==.1.2", "eA==.-1", "eA==.1.", "é.1", "A" * 900 + ".1"]
)
def test_a_foreign_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursorError):
        entry_page(KnownContents(BELOW), b"", recursive=True, limit=10, cursor=cursor)


def test_a_cursor_of_another_directory_gives_entries_of_this_one_only() -> None:
    contents = KnownContents(in_order(BELOW))
    first = entry_page(contents, b"", recursive=False, limit=1)
    assert first.cursor is not None
    page = entry_page(contents, b"d/sub", recursive=False, limit=10, cursor=first.cursor)
    assert [each.path for each in page.entries] == [b"d/sub/x"]
