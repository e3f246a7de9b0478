"""Records on the node's disk, each with a checksum and in two copies, so that a damaged one can be repaired."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from actors.logs import log
from actors.node.errors import CorruptRecordError, ToolError
from actors.node.removal import remove_tree

T = TypeVar("T")
_SEAL = re.compile(rb',"checksum":"([0-9a-f]{64})"}\s*')


def sealed(document: str) -> bytes:
    """Adds one field to a JSON object: the SHA-256 of the text without it."""
    checksum = hashlib.sha256(document.encode()).hexdigest()
    return f'{document.removesuffix("}")},"checksum":"{checksum}"}}'.encode()


def unsealed(data: bytes) -> bytes:
    """Checks a sealed JSON object and removes its checksum. An object without a checksum is returned as it is.

    Raises:
        ValueError: the checksum does not match.
    """
    at = data.rfind(b',"checksum":')
    seal = _SEAL.fullmatch(data, at) if at >= 0 else None
    if seal is None:
        return data
    document = data[:at] + b"}"
    if hashlib.sha256(document).hexdigest().encode() != seal[1]:
        raise ValueError("the checksum is another")
    return document


class TwinFile(Generic[T]):
    """A sealed JSON object in a file, with a copy in a second file beside it."""

    def __init__(self, file: Path, parse: Callable[[bytes], T]) -> None:
        """`parse` turns a document into a value, or raises ValueError."""
        self._file = file
        self._copy = file.with_name(f"{file.name}.copy")
        self._parse = parse

    @property
    def exists(self) -> bool:
        """True if at least one of the two files exists, readable or not."""
        return self._file.exists() or self._copy.exists()

    def read(self) -> tuple[T | None, bool]:
        """Returns the value, or None if there are no files; and True if both files are as they should be.

        Raises:
            CorruptRecordError: there are files, and none can be read.
        """
        value, copy = self._read(self._file), self._read(self._copy)
        if value is None and copy is None:
            if self.exists:
                raise CorruptRecordError(
                    f"{self._file.name} and its copy cannot be read.",
                    hint="Delete the sandbox; its backups stay, and can be restored into a new one.",
                )
            return None, True
        if value is None:
            log.error("record_read_from_its_copy", file=self._file.name)
        return (value, copy == value) if value is not None else (copy, False)

    def _read(self, file: Path) -> T | None:
        try:
            return self._parse(unsealed(file.read_bytes()))
        except (OSError, ValueError):
            return None

    def write(self, document: str) -> None:
        """Writes the value, all or nothing. Once the first file has its name, no failure is raised any more.

        Raises OSError, ToolError: the earlier value is still there.
        """
        data = sealed(document)
        write_whole(self._file, data, through=self._file.with_suffix(".new"))
        try:
            write_whole(self._copy, data)
        except (OSError, ToolError) as e:  # the first file is written, and the next write makes both
            log.error("record_not_copied", file=self._file.name, error=type(e).__name__)


def write_whole(file: Path, data: bytes, *, through: Path | None = None) -> None:
    """Writes a file under its name, or leaves the earlier file. Syncs its folder if that is possible.

    `through` is the temporary name. By default it is unique, so that several processes may write the file.

    Raises OSError, and ToolError if a directory is in the way and cannot be removed.
    """
    fresh = through or file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with fresh.open("wb") as content:
            content.write(data)
            content.flush()
            os.fsync(content.fileno())
        if file.is_dir() and not file.is_symlink():
            remove_tree(file)
        fresh.replace(file)
        try:
            os.fsync(folder)
        except OSError as e:
            log.error("record_not_synced", error=type(e).__name__)
    finally:
        os.close(folder)
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
