"""Mistakes in gitignore(5) patterns, and the errors that report them to the caller."""

from __future__ import annotations

import pytest

from actors.errors import InvalidBackupConfigError
from actors.ignore_patterns import Flaw, find_flaw, parse
from actors.models import BackupOptions, validated

FLAWED = {
    "bin\\": Flaw.BACKSLASH,
    "a/b\\": Flaw.BACKSLASH,
    "[a\\": Flaw.BACKSLASH,
    "!": Flaw.EMPTY,
    "/": Flaw.EMPTY,
    "!/": Flaw.EMPTY,
    "  ": Flaw.EMPTY,
    "[a": Flaw.BRACKET,
    "a[": Flaw.BRACKET,
    "[]": Flaw.BRACKET,
    "[[:alpha:": Flaw.BRACKET,
    "[[:alpha:]": Flaw.BRACKET,
    "[a-": Flaw.BRACKET,
    "[[:nope:]]": Flaw.CLASS,
    "[[:]]": None,
    "[/]": Flaw.NO_CHARACTER,
    "[z-a]": Flaw.REVERSED,
    "x[9-0]y": Flaw.REVERSED,
    "//": Flaw.EMPTY,
    "a//b": Flaw.PARTS,
    "./a": Flaw.PARTS,
    "../a": Flaw.PARTS,
    "a/./b": Flaw.PARTS,
    "a/..": Flaw.PARTS,
    ".": Flaw.PARTS,
    "#": None,
    "# a comment [": None,
    "\\#a": None,
    "[]a]": None,
    "[!]a]": None,
    "[a-]": None,
    "[\\]]": None,
    "[[:digit:]-z]": None,
    "a\\\\": None,
    "a\\ ": None,
    "**/": None,
    "dir/**/": None,
    "...": None,
    ".a": None,
    "\udce9".encode("utf-8", "surrogateescape").decode("latin-1"): None,
}


@pytest.mark.parametrize(("pattern", "flaw"), FLAWED.items())
def test_a_mistake_in_a_pattern_is_found(pattern: str, flaw: Flaw | None) -> None:
    assert find_flaw(pattern) is flaw


@pytest.mark.parametrize("pattern", [pattern for pattern, flaw in FLAWED.items() if flaw])
def test_the_error_for_a_flawed_exclude_names_it(pattern: str) -> None:
    with pytest.raises(InvalidBackupConfigError) as raised:
        validated(BackupOptions, {"dir": "/app", "excludes": ["*.log", pattern]}, InvalidBackupConfigError)
    assert f'excludes.1: the pattern "{pattern}" is wrong' in raised.value.message


def test_excludes_that_are_too_long_in_total_are_refused() -> None:
    validated(BackupOptions, {"dir": "/app", "excludes": ["x" * 4096] * 16}, InvalidBackupConfigError)
    with pytest.raises(InvalidBackupConfigError, match="65536 bytes together"):
        validated(BackupOptions, {"dir": "/app", "excludes": ["x" * 4096] * 17}, InvalidBackupConfigError)


@pytest.mark.parametrize("pattern", ["\ud800", "a\udfff", "é" * 2049])
def test_an_exclude_that_cannot_be_a_path_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"excludes\.0"):
        validated(BackupOptions, {"dir": "/app", "excludes": [pattern]}, InvalidBackupConfigError)


def test_the_error_for_an_exclude_that_is_not_utf8_can_be_printed() -> None:
    with pytest.raises(InvalidBackupConfigError) as raised:
        validated(BackupOptions, {"dir": "/app", "excludes": ["\udce9\\"]}, InvalidBackupConfigError)
    assert r"\xe9" in raised.value.message.encode().decode()


@pytest.mark.parametrize("pattern", [pattern for pattern, flaw in FLAWED.items() if flaw is None])
def test_a_pattern_without_a_mistake_is_accepted(pattern: str) -> None:
    validated(BackupOptions, {"dir": "/app", "excludes": [pattern]})


@pytest.mark.parametrize("line", ["", "# comment", "!", "/", "a\\", "[a", "[[:nope:]]", "[/]"])
def test_a_line_that_matches_nothing_is_no_pattern(line: str) -> None:
    assert parse(line) is None
