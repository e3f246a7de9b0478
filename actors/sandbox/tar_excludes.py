"""Excludes paths from an archive of GNU tar, each taken literally.

tar reads the list from its standard input, one path a line, and strips white space from the end of each line. A path
that no line can hold becomes an argument of the command.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from actors.errors import InvalidRequestError

_MOST_WORDS_BYTES = 1_000_000
"""Limit for the bytes of all such arguments. Source: execve(2), "Limits on size of arguments"."""
_LITERALLY = ("--anchored", "--no-wildcards")
"""Apply to the exclude options that follow them; tar then finds a path in a table.

Source: GNU tar manual, "Controlling Pattern-Matching".
"""


@dataclass(frozen=True, slots=True)
class TarExcludes:
    """Options for tar, and the bytes for its standard input; None if it reads nothing."""

    options: tuple[str, ...] = ()
    lines: bytes | None = None


def tar_excludes(paths: Sequence[bytes]) -> TarExcludes:
    """Excludes these paths and everything below them. Paths are relative to the directory that is archived as ".".

    Raises:
        InvalidRequestError: too many of the paths fit on no line.
    """
    if not paths:
        return TarExcludes()
    lines: list[bytes] = []
    words: list[str] = []
    for path in paths:
        if b"\n" in path or path[-1:].isspace():
            words.append(f"--exclude=./{os.fsdecode(path)}")
        else:
            lines.append(b"./" + path + b"\n")
    if sum(map(len, words)) > _MOST_WORDS_BYTES:
        raise InvalidRequestError(
            "Too many of the names to leave out hold line feeds, or end with white space.",
            hint="Exclude the directories that they are in.",
        )
    return TarExcludes((*_LITERALLY, "--exclude-from=-", *words), b"".join(lines))
