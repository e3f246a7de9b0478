"""The output of the commands: text for people, or exactly one JSON document for machines."""

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
    """Prints results to the stream that is `sys.stdout` at its creation, and text of any other kind to stderr."""

    as_json: bool = False
    results: TextIO = field(default_factory=lambda: sys.stdout)

    def result(self, value: BaseModel | Mapping[str, Any] | None, *lines: str) -> None:
        """Prints the result: `value` for machines, `lines` for people."""
        if self.as_json:
            self._document(value)
        else:
            for line in lines:
                _line(self.results, line)

    def rows(self, value: BaseModel | Mapping[str, Any], header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a list: a table on a terminal, tab-separated lines in a pipe, `value` for machines."""
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
        """Prints something that people should know, beside the result."""
        if not self.as_json:
            _line(sys.stderr, f"note: {text}")

    def error(self, error: HoldfastError) -> None:
        """Prints an error of ours, with its hint."""
        self.failure(code=error.code, message=error.message, context=error.context, hint=error.hint)

    def failure(self, *, code: str, message: str, context: Mapping[str, Any], hint: str | None) -> None:
        """Prints any error: to stderr for people, in place of the result for machines."""
        if self.as_json:
            self._document({"code": code, "error": message, "context": context} | ({"hint": hint} if hint else {}))
            return
        _line(sys.stderr, f"error: {message}")
        if hint:
            _line(sys.stderr, f"hint: {hint}")

    def note_failure(self, error: OSError) -> None:
        """Prints an error of this machine, most often one of writing the results, to stderr."""
        _line(sys.stderr, f"error: {error.filename or 'the output'}: {error.strerror}.")

    def _document(self, value: Any) -> None:
        json.dump(_plain(value) if hasattr(value, "model_dump") else value, self.results, default=_plain)
        self.results.write("\n")

    @property
    def shows_progress(self) -> bool:
        """True if a person may be looking: stderr is a terminal."""
        return not self.as_json and sys.stderr.isatty()


def printable(text: str) -> str:
    """The text with control characters and stray bytes escaped: a file's name must not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _line(stream: TextIO, *cells: str) -> None:
    stream.write("\t".join(printable(cell) for cell in cells) + "\n")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else str(value)
