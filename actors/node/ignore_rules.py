"""Matches paths against a list of gitignore(5) patterns, of which the last that matches decides.

Patterns without wildcards are found in a table. RE2 matches the others, some dozens at a time, in linear time and with
bounded memory, because a sandbox's command may have written them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.ignore_patterns import DIRECTORY_MARK, Pattern, parse
from actors.node.errors import TreeError

if TYPE_CHECKING:
    import re2

MAX_FILE_BYTES = 1024 * 1024
MAX_PATTERNS = 10_000
_MAX_EXPRESSION_BYTES = 1024 * 1024
"""Limit for the expressions of all patterns that apply to one path. At it, or at MAX_PATTERNS, RE2 may take 200 MB."""
_MAX_PATTERN_BYTES = 4096
"""The longest path in Linux. Source: PATH_MAX in linux/limits.h."""
_TOGETHER = 50
_BYTES_TOGETHER = 4096
_MEMORY_BYTES = 512 * 1024
"""RE2's memory for one compiled expression and its cached states. 100 patterns take about three times as much."""
_BYTES_OF_MEMORY = 64
"""RE2's memory for each byte of an expression, with a reserve: most bytes are one instruction, of 16 bytes."""
_Ranked = tuple[int, Pattern]
"""A pattern, and how many come after it: of those that match, the one with the lowest rank decides."""
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}".encode().decode("latin-1")


def text_of(path: str) -> str:
    """A path as text with one character for each of its bytes, as RE2 needs it and git matches it."""
    return path if path.isascii() else path.encode("utf-8", "surrogateescape").decode("latin-1")


def lines_of(content: bytes) -> list[str]:
    """The lines of a .gitignore file, split as by git: a carriage return before a line feed is removed."""
    text = content.decode("latin-1").removeprefix(_BOM)
    lines = (text if text.endswith("\n") else text + "\n").split("\n")[:-1]
    return [line.removesuffix("\r").partition("\0")[0] for line in lines]


@dataclass(frozen=True, slots=True)
class Size:
    """The number of patterns, and the length of their expressions."""

    patterns: int = 0
    expression_bytes: int = 0

    def __add__(self, other: Size) -> Size:
        """The sum of both sizes.

        Raises:
            TreeError: the sum is beyond the limits.
        """
        made = Size(self.patterns + other.patterns, self.expression_bytes + other.expression_bytes)
        if made.patterns > MAX_PATTERNS or made.expression_bytes > _MAX_EXPRESSION_BYTES:
            raise TreeError(
                f"More than {MAX_PATTERNS} patterns, or too long ones, of .gitignore files are about one directory.",
                hint="Remove some, or back the directory up without `gitignore`.",
            )
        return made


class Rules:
    """A list of patterns, compiled at their first use.

    `check` is called often; it raises when the time is up.

    Raises:
        TreeError: there are too many patterns, or one is longer than any path.
    """

    def __init__(self, lines: Iterable[str], check: Callable[[], None]) -> None:
        self._check = check
        self.size = Size()
        patterns = []
        for pattern in _patterns(lines, check):
            patterns.append(pattern)
            self.size += Size(1, len(pattern.expression))
        self._includes = [pattern.includes for pattern in reversed(patterns)]
        self._names: dict[str, int] = {}
        self._paths: dict[str, int] = {}
        others: list[_Ranked] = []
        for rank, pattern in enumerate(reversed(patterns)):
            if pattern.literal is None:
                others.append((rank, pattern))
            else:
                (self._names if pattern.by_name else self._paths).setdefault(pattern.literal, rank)
        self._groups = [_Group(group) for group in _groups(others)]

    def verdict(self, path: str, *, is_directory: bool) -> bool | None:
        """Returns True for an excluded path, False for one that is included again, None if no pattern matches.

        Args:
            path: relative to the directory of the patterns, in Latin-1.
        """
        self._check()
        found = self._find_literal(path, is_directory=is_directory)
        path_bytes = (path + DIRECTORY_MARK * is_directory).encode("latin-1")
        name_bytes = path_bytes.rpartition(b"/")[2]
        for group in self._groups:
            if found is not None and found < group.first_rank:
                break
            self._check()
            rank = group.find(path_bytes, name_bytes)
            if rank is not None:
                found = rank if found is None else min(found, rank)
                break
        return None if found is None else not self._includes[found]

    def _find_literal(self, path: str, *, is_directory: bool) -> int | None:
        """The lowest rank of the patterns without wildcards that match."""
        name = path.rpartition("/")[2]
        ranks = [self._names.get(name), self._paths.get(path)]
        if is_directory:
            ranks += [self._names.get(name + DIRECTORY_MARK), self._paths.get(path + DIRECTORY_MARK)]
        return min((rank for rank in ranks if rank is not None), default=None)


def _patterns(lines: Iterable[str], check: Callable[[], None]) -> Iterator[Pattern]:
    for line in lines:
        check()
        if len(line) > _MAX_PATTERN_BYTES and not line.startswith("#"):
            raise TreeError(f"A pattern in a .gitignore file is longer than {_MAX_PATTERN_BYTES} bytes.")
        pattern = parse(line)
        if pattern is not None:
            yield pattern


def _groups(patterns: Sequence[_Ranked]) -> Iterator[list[_Ranked]]:
    group: list[_Ranked] = []
    size = 0
    for rank, pattern in patterns:
        size += len(pattern.expression)
        if group and (len(group) == _TOGETHER or size > _BYTES_TOGETHER):
            yield group
            group, size = [], len(pattern.expression)
        group.append((rank, pattern))
    if group:
        yield group


class _Group:
    """Some patterns that are matched together, the last one first."""

    def __init__(self, patterns: Sequence[_Ranked]) -> None:
        self.first_rank = patterns[0][0]
        self._of_name = _Alternatives([(rank, pattern) for rank, pattern in patterns if pattern.by_name])
        self._of_path = _Alternatives([(rank, pattern) for rank, pattern in patterns if not pattern.by_name])

    def find(self, path: bytes, name: bytes) -> int | None:
        """The lowest rank of the patterns that match."""
        ranks = (self._of_name.first(name), self._of_path.first(path))
        return min((rank for rank in ranks if rank is not None), default=None)


class _Alternatives:
    """Patterns as one expression of RE2. It first tests whether any matches, which is fast, and only then which one."""

    def __init__(self, patterns: Sequence[_Ranked]) -> None:
        self._ranks = [rank for rank, _ in patterns]
        self._expressions = [pattern.expression for _, pattern in patterns]
        self._any: re2._Regexp | None = None
        self._which: re2._Regexp | None = None

    def first(self, text: bytes) -> int | None:
        """The lowest rank of the patterns that match the whole text: RE2, like Perl, prefers the first alternative."""
        if not self._expressions:
            return None
        if self._any is None:
            self._any = _compiled("|".join(f"(?:{each})" for each in self._expressions))
        if self._any.fullmatch(text) is None:
            return None
        if self._which is None:
            self._which = _compiled("|".join(f"({each})" for each in self._expressions))
        found = self._which.fullmatch(text)
        return None if found is None else self._ranks[found.lastindex - 1]


def _compiled(expression: str) -> re2._Regexp:
    import re2  # imported late: most backups have no patterns

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    options.max_mem = _MEMORY_BYTES + _BYTES_OF_MEMORY * len(expression)
    try:
        return re2.compile(expression.encode("latin-1"), options)
    except re2.error:
        raise TreeError("The patterns of a .gitignore file are too complex.") from None
    finally:
        re2.purge()  # else the module caches the compiled expression
