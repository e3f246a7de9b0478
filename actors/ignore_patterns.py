r"""Parser of gitignore(5) patterns that reads them as git does, byte for byte, and translates them for RE2.

Text is Latin-1 here: one character for each byte of a path, since git compares bytes. RE2 matches in linear time;
git's own matcher can be made to run for hours.

Source: git's dir.c and wildmatch.c, release 2.39. Some of their behaviour is in no manual page: `dir/**/` names the
directories below `dir`; "**" has its special meaning after a literal prefix too ("a**/b"); a backslash at the end, a
bracket that is not closed and an unknown [:class:] make a pattern that matches nothing.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from enum import StrEnum

DIRECTORY_MARK = "\0"
"""The last character of a directory's path. A slash there would look like a separator of two parts of the path."""
_SPECIAL = frozenset("*?[\\")
_PUNCTUATION = frozenset(string.punctuation)
_LETTERS, _DIGITS = frozenset(string.ascii_letters), frozenset(string.digits)
_BYTES = frozenset(map(chr, range(1, 256))) - {"/"}
"""All characters that a bracket can match: no path holds a NUL, and a slash ends a part of it."""
_NO_SLASH, _ANY = r"[^/\x00]", r"[^\x00]"
_CLASSES = {
    "alnum": _LETTERS | _DIGITS,
    "alpha": _LETTERS,
    "blank": frozenset(" \t"),
    "cntrl": frozenset(map(chr, (*range(32), 127))),
    "digit": _DIGITS,
    "graph": _LETTERS | _DIGITS | _PUNCTUATION,
    "lower": frozenset(string.ascii_lowercase),
    "print": _LETTERS | _DIGITS | _PUNCTUATION | {" "},
    "punct": _PUNCTUATION,
    "space": frozenset(" \t\n\r"),
    "upper": frozenset(string.ascii_uppercase),
    "xdigit": frozenset(string.hexdigits),
}
"""git's own classes, which cover ASCII only; its white space has no form feed and no vertical tab."""


class Flaw(StrEnum):
    """Mistakes that show in a pattern itself. git accepts such patterns silently; most of them match nothing."""

    EMPTY = "it names nothing"
    BACKSLASH = "it ends with a backslash"
    BRACKET = "a '[' is not closed"
    CLASS = "there is no such class of characters"
    NO_CHARACTER = "a '[…]' matches no character"
    REVERSED = "a range of characters is reversed"
    PARTS = "no path has a part that is empty, '.' or '..'"


@dataclass(frozen=True, slots=True)
class Pattern:
    """The pattern of one line."""

    expression: str
    """RE2 expression in Latin-1 for a whole path, or a whole name. A directory's ends with `DIRECTORY_MARK`."""
    by_name: bool
    """True if it is matched with the last part of a path, at any depth."""
    includes: bool
    """True if it includes again what an earlier pattern has excluded."""
    literal: str | None = None
    """The text that a pattern without wildcards matches, with `DIRECTORY_MARK` if only a directory's; else None."""


def parse(line: str) -> Pattern | None:
    """Parses a line without its line feed. None for a comment, and for a pattern that can match nothing."""
    return None if line.startswith("#") else _read(line)[0]


def find_flaw(line: str) -> Flaw | None:
    """The first sign that a pattern does not mean what its author intended; None if there is none."""
    return None if line.startswith("#") else _read(line)[1]


def _read(line: str) -> tuple[Pattern | None, Flaw | None]:
    body = _without_trailing_spaces(line)
    includes = body.startswith("!")
    body = body[includes:]
    literal = next((index for index, c in enumerate(body) if c in _SPECIAL), len(body))
    is_literal = literal == len(body)
    only_directories = body.endswith("/")
    body = body.removesuffix("/") if only_directories else body
    by_name = "/" not in body
    if body.startswith("/"):
        body = body[1:]
        literal -= 1
    if not body:
        return None, Flaw.EMPTY
    expressions = _Translation(body, 0 if by_name else min(literal, len(body)), by_path=not by_name)
    if expressions.nothing is not None:
        return None, expressions.nothing
    mark = r"\x00" if only_directories else r"\x00?"
    text = body + DIRECTORY_MARK * only_directories if is_literal else None
    pattern = Pattern(expressions.made + mark, by_name=by_name, includes=includes, literal=text)
    if not {"", ".", ".."}.isdisjoint(body.split("/")):
        return pattern, Flaw.PARTS
    return pattern, Flaw.REVERSED if expressions.has_reversed_range else None


def _without_trailing_spaces(line: str) -> str:
    """Removes spaces at the end, but none after a backslash; tabs stay."""
    end = index = 0
    while index < len(line):
        if line[index] == "\\":
            index += 1
            if index == len(line):
                return line
            end = index + 1
        elif line[index] != " ":
            end = index + 1
        index += 1
    return line[:end]


def _escaped(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{ord(c):02x}" for c in text)


def _class_of(members: frozenset[str]) -> str:
    """The expression for a class of characters, written as ranges."""
    starts = sorted(c for c in members if chr(ord(c) - 1) not in members)
    ends = sorted(c for c in members if chr(ord(c) + 1) not in members)
    return "[" + "".join(f"\\x{ord(a):02x}-\\x{ord(b):02x}" for a, b in zip(starts, ends, strict=True)) + "]"


class _Translation:
    """Translates one pattern. Like git, it takes the literal prefix as it is, and starts to match after that."""

    def __init__(self, body: str, literal: int, *, by_path: bool) -> None:
        self.nothing: Flaw | None = None
        self.has_reversed_range = False
        self._text = body[literal:]
        self._by_path = by_path
        self._at = 0
        made = [_escaped(body[:literal])]
        while self._at < len(self._text) and self.nothing is None:
            made.append(self._next())
        self.made = "".join(made)

    def _next(self) -> str:
        character = self._text[self._at]
        if character == "*":
            return self._stars()
        self._at += 1
        if character == "?":
            return _NO_SLASH
        if character == "[":
            return self._bracket()
        return _escaped(self._escape() if character == "\\" else character)

    def _escape(self) -> str:
        """The character after a backslash."""
        if self._at == len(self._text):
            self.nothing = self.nothing or Flaw.BACKSLASH
            return ""
        self._at += 1
        return self._text[self._at - 1]

    def _stars(self) -> str:
        start = self._at
        while self._text[self._at : self._at + 1] == "*":
            self._at += 1
        follows = self._text[self._at :]
        is_a_part = (start == 0 or self._text[start - 1] == "/") and (not follows or follows.startswith(("/", "\\/")))
        if not self._by_path or self._at - start == 1 or not is_a_part:
            return f"{_NO_SLASH}*"
        if follows.startswith("/"):
            self._at += 1
            return f"(?:{_ANY}*/)?"
        return f"{_ANY}*"

    def _bracket(self) -> str:
        negated = self._text[self._at : self._at + 1] in ("!", "^")
        self._at += negated
        found = frozenset(self._members())
        if self.nothing is not None:
            return ""
        members = _BYTES - found if negated else _BYTES & found
        if not members:
            self.nothing = Flaw.NO_CHARACTER
        return _class_of(members)

    def _members(self) -> set[str]:
        """Reads the characters of a bracket, and its end; a `]` at the very beginning is one of the characters."""
        text, members, previous, first = self._text, set[str](), "", True
        while True:
            character = text[self._at : self._at + 1]
            if not character:
                self.nothing = Flaw.BRACKET
                return members
            self._at += 1
            if character == "]" and not first:
                return members
            first = False
            if character == "\\":
                previous = self._escape()
                members.add(previous)
            elif character == "-" and previous and text[self._at : self._at + 1] not in ("", "]"):
                last = text[self._at]
                self._at += 1
                last = self._escape() if last == "\\" else last
                if self.nothing is None:
                    self.has_reversed_range |= last < previous
                    members.update(map(chr, range(ord(previous), ord(last) + 1)))
                previous = ""
            elif character == "[" and text[self._at : self._at + 1] == ":":
                previous = self._class(members)
            else:
                members.add(character)
                previous = character
            if self.nothing is not None:
                return members

    def _class(self, members: set[str]) -> str:
        """Adds a [:class:]. If the text only begins like one, adds a `[`, and returns it as the previous character."""
        end = self._text.find("]", self._at + 1)
        if end < 0:
            self.nothing = Flaw.BRACKET
            return ""
        if end == self._at + 1 or self._text[end - 1] != ":":
            members.add("[")
            return "["
        found = _CLASSES.get(self._text[self._at + 1 : end - 1])
        if found is None:
            self.nothing = Flaw.CLASS
        members.update(found or ())
        self._at = end + 1
        return ""
