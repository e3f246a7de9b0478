"""Files and their transfers."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from actors.models.base import Count, Model

TRANSFER_BYTES = 1024 * 1024
"""Bytes per message of a file transfer: 5 ms each through Ray (measured), so some 200 MB/s with little memory."""


class FileMode(Model):
    """The permissions of a new file, as for chmod(2); None for the usual ones."""

    mode: Annotated[int, Field(ge=0, le=0o7777)] | None


class FileKind(StrEnum):
    """The types of a directory entry."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


class FileEntry(Model):
    """One entry of a directory. A name that is not UTF-8 carries its raw bytes as surrogate escapes."""

    name: str
    kind: FileKind
    size_bytes: Count
    mode: int
    modified_at: datetime
