"""Arguments that several commands take, and the parser of `BOX:PATH`."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Annotated

import typer

DEFAULT_DIR = "/workspace"

Box = Annotated[str, typer.Argument(metavar="BOX", help="The sandbox; any name of a-z, 0-9 and '-'.")]

_REMOTE = re.compile(r"([a-z0-9](?:[a-z0-9-]{0,126}[a-z0-9])?):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Remote:
    """A path in a sandbox."""

    box: str
    path: str


def remote(text: str) -> Remote | None:
    """Parses `BOX:PATH`; returns None for a local path. A relative PATH is below /workspace.

    A local file whose name looks like that is written `./BOX:PATH`.
    """
    match = _REMOTE.fullmatch(text)
    if match is None:
        return None
    box, path = match.groups()
    return Remote(box, path if path.startswith("/") else f"{DEFAULT_DIR}/{path}".rstrip("/"))


def is_uuid(text: str) -> bool:
    """True for the form of a backup's id, which a sandbox's name may have, too."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
