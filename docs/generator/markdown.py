"""Markdown for tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE_OR_PIPE = re.compile(r"(`[^`]*`)|\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. The cells are Markdown of one or several lines."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def code(value: object) -> str:
    """The value as code; nothing for an empty one."""
    return f"`{value}`" if str(value) else ""


def _cell(text: str) -> str:
    """The text in one line, with its pipes escaped. Within code a pipe stands for itself."""
    return _CODE_OR_PIPE.sub(lambda found: found[1] or r"\|", " ".join(text.split()))
