"""The output of the commands: for people, or exactly one JSON document for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from actors.errors import HoldfastError

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Output:
    """Where results and errors go: results to what is the standard output now, everything else to stderr."""

    as_json: bool = False
    results: TextIO = field(default_factory=lambda: sys.stdout)

    def result(self, value: BaseModel | Mapping[str, Any] | None, *lines: str) -> None:
        """The result: `value` for machines, `lines` for people."""
        if self.as_json:
            self._document(value)
        else:
            for line in lines:
                _line(self.results, line)

    def rows(self, value: BaseModel | Mapping[str, Any], header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A list: a table on a terminal, tab-separated lines in a pipe."""
        if self.as_json:
            self._document(value)
        elif self.results.isatty():
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text

            table = Table(*header, box=None, pad_edge=False, header_style="bold")
            for row in rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            Console(file=self.results).print(table)
        else:
            for row in rows:
                _line(self.results, *row)

    def note(self, text: str) -> None:
        """Something that people should know, beside the result."""
        if not self.as_json:
            _line(sys.stderr, f"note: {text}")

    def error(self, error: HoldfastError) -> None:
        """What went wrong, and what to do about it."""
        self.failure(code=error.code, message=error.message, context=error.context, hint=error.hint)

    def failure(self, *, code: str, message: str, context: Mapping[str, Any], hint: str | None) -> None:
        """The same, for what is not one of our errors."""
        if self.as_json:
            self._document({"code": code, "error": message, "context": context} | ({"hint": hint} if hint else {}))
            return
        _line(sys.stderr, f"error: {message}")
        if hint:
            _line(sys.stderr, f"hint: {hint}")

    def note_failure(self, error: OSError) -> None:
        """What this machine has refused, most often to take the results; on stderr, where they are not."""
        _line(sys.stderr, f"error: {error.filename or 'the output'}: {error.strerror}.")

    def _document(self, value: Any) -> None:
        json.dump(_plain(value) if hasattr(value, "model_dump") else value, self.results, default=_plain)
        self.results.write("\n")

    @property
    def shows_progress(self) -> bool:
        """Whether somebody is looking."""
        return not self.as_json and sys.stderr.isatty()


def printable(text: str) -> str:
    """The text with control characters and stray bytes escaped: a file's name must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _line(stream: TextIO, *cells: str) -> None:
    stream.write("\t".join(printable(cell) for cell in cells) + "\n")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else str(value)
