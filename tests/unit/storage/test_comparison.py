from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import comparison, paging
from storage.comparison import Change, Differs, change_page
from storage.listing import Entry
from tests.support.entries import FILE, LINK, KnownContents, entry, folder, in_order, trees


def changes(before: list[Entry], after: list[Entry], *, limit: int = 1000) -> list[Change]:
    found: list[Change] = []
    cursor = None
    while True:
        page = change_page(KnownContents(before), KnownContents(after), limit=limit, cursor=cursor)
        assert len(page.changes) <= limit
        found += page.changes
        cursor = page.cursor
        if cursor is None:
            return found


@given(trees(), trees(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 9))
def test_changes_between_any_trees_are_those_of_a_plain_comparison(
    before: list[Entry], after: list[Entry], limit: int, prefix_bytes: int, compared: int
) -> None:
    old, new = ({each.path: each for each in tree} for tree in (before, after))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "_PREFIX_BYTES", prefix_bytes)
        patch.setattr(comparison, "_COMPARED", compared)
        found = changes(before, after, limit=limit)
    assert [change.path for change in found] == [
        each.path for each in in_order((old | new).values()) if old.get(each.path) != new.get(each.path)
    ]
    assert all((change.before, change.after) == (old.get(change.path), new.get(change.path)) for change in found)


@pytest.mark.parametrize(
    ("before", "after", "differs"),
    [
        (entry("a"), entry("a", size=4), (Differs.SIZE,)),
        (entry("a"), entry("a", at=5), (Differs.TIME,)),
        (entry("a"), entry("a", FILE | 0o111), (Differs.MODE,)),
        (entry("a"), entry("a", FILE ^ 0o100, size=9, at=5), (Differs.MODE, Differs.SIZE, Differs.TIME)),
        (entry("a"), folder("a"), (Differs.KIND,)),
        (entry("a", LINK, target=b"x"), entry("a", LINK, target=b"y"), (Differs.TARGET,)),
    ],
)
def test_a_change_says_in_what_the_entries_differ(before: Entry, after: Entry, differs: tuple[Differs, ...]) -> None:
    assert changes([folder(""), before], [folder(""), after]) == [Change(b"a", before, after, differs)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (folder("a"), folder("a")._replace(modified_s=5)),
        (entry("a"), entry("a")._replace(modified_ns=0)),
        (entry("a", LINK, target=b"x"), entry("a", LINK, at=9, target=b"x")),
        (entry("a", LINK, target=b"x"), entry("a", LINK)),
    ],
    ids=["time of a directory", "a time in whole seconds", "time of a link", "an unknown target"],
)
def test_what_says_nothing_is_no_change(before: Entry, after: Entry) -> None:
    assert changes([before], [after]) == changes([after], [before]) == []


def test_a_file_changed_within_one_second_is_seen_where_both_times_are_exact() -> None:
    before, after = entry("a"), entry("a")._replace(modified_ns=6)
    assert changes([before], [after]) == [Change(b"a", before, after, (Differs.TIME,))]


def test_a_page_of_equal_trees_is_bounded_and_says_that_it_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_COMPARED", 10)
    tree = in_order([folder(""), *(entry(f"{n:03}") for n in range(25))])
    page = change_page(KnownContents(tree), KnownContents(tree), limit=5)
    assert page.changes == () and page.cursor is not None
    assert changes(tree, [*tree, entry("999")], limit=5) == [Change(b"999", None, entry("999"))]
