"""The rules of one list of gitignore(5) patterns: the last one that is about a path decides.

RE2 matches them, some dozens at a time: in linear time and with bounded memory, since whoever lives in the sandbox may
have written them.
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
"""Of all patterns in force for one path, as RE2 reads them: it may take 200 MB for these, and for MAX_PATTERNS."""
_MAX_PATTERN_BYTES = 4096
"""The longest path that Linux takes. Source: PATH_MAX in linux/limits.h."""
_TOGETHER = 50
_BYTES_TOGETHER = 4096
_MEMORY_BYTES = 512 * 1024
"""For what RE2 compiles together, and the states that it remembers of it: some 3 of these for 100 patterns."""
_BYTES_OF_MEMORY = 64
"""RE2's memory for each byte of an expression, with a reserve: most are one instruction, of 16 bytes."""
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}".encode().decode("latin-1")


def text_of(path: str) -> str:
    """A path as text of one character for each of its bytes, which RE2 takes and git means."""
    return path if path.isascii() else path.encode("utf-8", "surrogateescape").decode("latin-1")


def lines_of(content: bytes) -> list[str]:
    """The lines of a .gitignore file, as git divides it: a carriage return before a line feed belongs to it."""
    text = content.decode("latin-1").removeprefix(_BOM)
    lines = (text if text.endswith("\n") else text + "\n").split("\n")[:-1]
    return [line.removesuffix("\r").partition("\0")[0] for line in lines]


@dataclass(frozen=True, slots=True)
class Size:
    """The number of patterns, and the length of their expressions."""

    patterns: int = 0
    expression_bytes: int = 0

    def __add__(self, other: Size) -> Size:
        """The size of both together.

        Raises:
            TreeError: so many are not to be in force together.
        """
        made = Size(self.patterns + other.patterns, self.expression_bytes + other.expression_bytes)
        if made.patterns > MAX_PATTERNS or made.expression_bytes > _MAX_EXPRESSION_BYTES:
            raise TreeError(
                f"More than {MAX_PATTERNS} patterns, or too long ones, of .gitignore files are about one directory.",
                hint="Remove some, or back the directory up without `gitignore`.",
            )
        return made


class Rules:
    """A list of patterns. They are compiled when they are first asked.

    `check` is called often, to raise when the time is up.

    Raises:
        TreeError: there are too many, or one is longer than any path.
    """

    def __init__(self, lines: Iterable[str], check: Callable[[], None]) -> None:
        self._check = check
        self.size = Size()
        patterns = []
        for pattern in _patterns(lines, check):
            patterns.append(pattern)
            self.size += Size(1, len(pattern.expression))
        self._groups = [_Group(group) for group in _groups(patterns[::-1])]

    def verdict(self, path: str, *, is_directory: bool) -> bool | None:
        """Whether a path is excluded (True), included again (False), or no pattern is about it (None).

        Args:
            path: relative to where the patterns lie, in Latin-1.
        """
        path_bytes = (path + DIRECTORY_MARK * is_directory).encode("latin-1")
        name_bytes = path_bytes.rpartition(b"/")[2]
        for group in self._groups:
            self._check()
            found = group.find(path_bytes, name_bytes)
            if found is not None:
                return not found.includes
        return None


def _patterns(lines: Iterable[str], check: Callable[[], None]) -> Iterator[Pattern]:
    for line in lines:
        check()
        if len(line) > _MAX_PATTERN_BYTES and not line.startswith("#"):
            raise TreeError(f"A pattern in a .gitignore file is longer than {_MAX_PATTERN_BYTES} bytes.")
        pattern = parse(line)
        if pattern is not None:
            yield pattern


def _groups(patterns: Sequence[Pattern]) -> Iterator[list[Pattern]]:
    group: list[Pattern] = []
    size = 0
    for pattern in patterns:
        size += len(pattern.expression)
        if group and (len(group) == _TOGETHER or size > _BYTES_TOGETHER):
            yield group
            group, size = [], len(pattern.expression)
        group.append(pattern)
    if group:
        yield group


class _Group:
    """Some patterns, the last one first."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        ranked = list(enumerate(patterns))
        self._patterns = patterns
        self._of_name = _Alternatives([(rank, pattern) for rank, pattern in ranked if pattern.by_name])
        self._of_path = _Alternatives([(rank, pattern) for rank, pattern in ranked if not pattern.by_name])

    def find(self, path: bytes, name: bytes) -> Pattern | None:
        ranks = (self._of_name.first(name), self._of_path.first(path))
        found = min((rank for rank in ranks if rank is not None), default=None)
        return None if found is None else self._patterns[found]


class _Alternatives:
    """The test whether any of them matches is a search of RE2's automaton; only then it is asked which one."""

    def __init__(self, patterns: Sequence[tuple[int, Pattern]]) -> None:
        self._ranks = [rank for rank, _ in patterns]
        self._expressions = [pattern.expression for _, pattern in patterns]
        self._any: re2._Regexp | None = None
        self._which: re2._Regexp | None = None

    def first(self, text: bytes) -> int | None:
        """The lowest rank of those that match the whole text: RE2 prefers the first alternative, as Perl does."""
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
    import re2  # most backups have no patterns

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    options.max_mem = _MEMORY_BYTES + _BYTES_OF_MEMORY * len(expression)
    try:
        return re2.compile(expression.encode("latin-1"), options)
    except re2.error:
        raise TreeError("The patterns of a .gitignore file are too complex.") from None
    finally:
        re2.purge()  # else it keeps what it has compiled
