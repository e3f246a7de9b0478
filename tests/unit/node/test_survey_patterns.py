"""The table of gitignore(5): which files a pattern excludes."""

from __future__ import annotations

import pytest

from actors.node.ignore_rules import Rules, lines_of

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


def never() -> None:
    """A cancellation check that never cancels."""


@pytest.mark.parametrize(("patterns", "path", "is_directory", "excluded"), TABLE)
def test_a_pattern_matches_what_git_matches(patterns: list[str], path: str, is_directory: bool, excluded: bool) -> None:
    assert bool(Rules(patterns, never).verdict(path, is_directory=is_directory)) is excluded


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\r\nb\r", ["a", "b"]),
        (b"a\rb\n", ["a\rb"]),
        (b"a\r\r\n", ["a\r"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\xef\xbb\xbfb"]),
        (b"a\0b\nc\n", ["a", "c"]),
        (b"a\x0bb\x0cc\x85d\n", ["a\x0bb\x0cc\x85d"]),
    ],
)
def test_a_file_is_split_into_lines_as_git_does(content: bytes, lines: list[str]) -> None:
    assert lines_of(content) == lines


def test_the_last_matching_pattern_decides() -> None:
    patterns = [f"{'!' * (number % 2)}file{number % 300}" for number in range(999)]
    rules = Rules([*patterns, "x*", "!/x7"], never)
    for number in range(300):
        last = max(index for index in range(999) if index % 300 == number)
        assert rules.verdict(f"a/file{number}", is_directory=False) is (last % 2 == 0)
    assert rules.verdict("x7", is_directory=False) is False
    assert rules.verdict("a/x7", is_directory=False) is True
    assert rules.verdict("other", is_directory=False) is None


@pytest.mark.parametrize("number", [1_000, 4_000])
def test_patterns_without_wildcards_take_no_match_each(number: int) -> None:
    checks: list[None] = []
    lines = [f"name{n}" for n in range(number)] + [f"/a/b{n}/" for n in range(number)] + ["!/a/b7", "*.log"]
    rules = Rules(lines, lambda: checks.append(None))
    checks.clear()
    assert rules.verdict("x/name5", is_directory=False) is True
    assert rules.verdict("x/name", is_directory=False) is None
    assert rules.verdict("a/b5", is_directory=True) is True
    assert rules.verdict("a/b5", is_directory=False) is None
    assert rules.verdict("a/b7", is_directory=True) is False
    assert rules.verdict("name5/x.log", is_directory=False) is True
    assert len(checks) == 2 * 6
