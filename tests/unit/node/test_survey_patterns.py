"""Which files a pattern leaves out: the table of gitignore(5)."""

from __future__ import annotations

import pytest

from actors.node.survey import _is_excluded, _patterns

TABLE = [
    # patterns, path, directory?, excluded?
    (["*.log"], "a.log", False, True),
    (["*.log"], "x/y/a.log", False, True),
    (["/a.log"], "a.log", False, True),
    (["/a.log"], "x/a.log", False, False),
    (["x/a.log"], "x/a.log", False, True),
    (["x/a.log"], "y/x/a.log", False, False),
    (["build/"], "build", True, True),
    (["build/"], "build", False, False),
    (["build/"], "x/build", True, True),
    (["**/logs"], "x/y/logs", True, True),
    (["a/**/b"], "a/b", False, True),
    (["a/**/b"], "a/x/y/b", False, True),
    (["a/**"], "a", True, False),
    (["a/**"], "a/x", False, True),
    (["*"], "anything", False, True),
    (["a?"], "ab", False, True),
    (["a?"], "a/", False, False),
    (["[ab].x"], "b.x", False, True),
    (["[!ab].x"], "c.x", False, True),
    (["[!ab].x"], "a.x", False, False),
    (["*.log", "!keep.log"], "keep.log", False, False),
    (["!keep.log", "*.log"], "keep.log", False, True),
    (["#a"], "#a", False, False),
    (["\\#a"], "#a", False, True),
    (["\\!a"], "!a", False, True),
    (["a "], "a", False, True),
    (["a\\ "], "a ", False, True),
    (["*.log", "!d/"], "d/a.log", False, True),
    (["foo/*"], "foo/bar/x", False, False),
    (["x*z"], "x/z", False, False),
    (["\\*"], "*", False, True),
    (["\\*"], "a", False, False),
]


@pytest.mark.parametrize(("patterns", "path", "is_directory", "excluded"), TABLE)
def test_a_pattern_means_what_git_says(patterns: list[str], path: str, is_directory: bool, excluded: bool) -> None:
    assert _is_excluded(path, is_directory, (("", _patterns(patterns)),)) is excluded


@pytest.mark.parametrize(
    ("outer", "inner", "path", "excluded"),
    [
        (["*.log"], ["!a.log"], "d/a.log", False),
        (["*.log"], ["!a.log"], "d/b.log", True),
        (["!a.log"], ["*.log"], "d/a.log", True),
        ([], ["/a"], "d/a", True),
        ([], ["/a"], "d/x/a", False),
        (["/d/a"], ["b"], "d/a", True),
    ],
)
def test_an_inner_file_wins_and_is_anchored_where_it_lies(
    outer: list[str], inner: list[str], path: str, excluded: bool
) -> None:
    rules = (("", _patterns(outer)), ("d/", _patterns(inner)))
    assert _is_excluded(path, False, rules) is excluded
