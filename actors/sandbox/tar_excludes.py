"""The paths that GNU tar leaves out of an archive, handed to it so that each names itself and nothing else.

tar reads its list from its standard input, a path on each line, and takes white space off the end of a line. What no
line can hold becomes a word of the command.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from actors.errors import InvalidRequestError

_MOST_WORDS_BYTES = 1_000_000
"""Bytes of words, so that the command can still be started. Source: execve(2), "Limits on size of arguments"."""
_LITERALLY = ("--anchored", "--no-wildcards")
"""For the options behind them; tar then looks a path up in a table.

Source: GNU tar manual, "Controlling Pattern-Matching".
"""


@dataclass(frozen=True, slots=True)
class TarExcludes:
    """Options of tar, and what it is to read from its standard input meanwhile; None if it reads nothing."""

    options: tuple[str, ...] = ()
    lines: bytes | None = None


def tar_excludes(paths: Sequence[bytes]) -> TarExcludes:
    """Leaves out these paths, which are relative to the directory that is archived as ".", and all that is below them.

    Raises:
        InvalidRequestError: too many of them can stand on no line.
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
