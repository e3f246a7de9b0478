"""Records on the node's disk that have to be right: with a checksum, and twice, so that a damaged one is mended."""

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
    """A JSON object with one more field: the SHA-256 of the text without it."""
    checksum = hashlib.sha256(document.encode()).hexdigest()
    return f'{document.removesuffix("}")},"checksum":"{checksum}"}}'.encode()


def unsealed(data: bytes) -> bytes:
    """The JSON object that was sealed. One without a checksum is given back as it is.

    Raises:
        ValueError: it is not what it was.
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
    """A sealed JSON object in a file, and once more in a second file beside it."""

    def __init__(self, file: Path, parse: Callable[[bytes], T]) -> None:
        """`parse` makes a value of a document, or raises ValueError."""
        self._file = file
        self._copy = file.with_name(f"{file.name}.copy")
        self._parse = parse

    @property
    def exists(self) -> bool:
        """Whether there is one of the two, readable or not."""
        return self._file.exists() or self._copy.exists()

    def read(self) -> tuple[T | None, bool]:
        """The value, or None if there are no files; and whether both files are as they should be.

        Raises:
            CorruptRecordError: neither can be read.
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
        """Writes the value, whole or not at all; once the first file has its name, nothing fails any more.

        Raises OSError: what was there is there still.
        """
        data = sealed(document)
        write_whole(self._file, data, through=self._file.with_suffix(".new"))
        try:
            write_whole(self._copy, data)
        except (OSError, ToolError) as e:  # the first is there, and the next write makes both
            log.error("record_not_copied", file=self._file.name, error=type(e).__name__)


def write_whole(file: Path, data: bytes, *, through: Path | None = None) -> None:
    """Writes a file under its name, or leaves what was there. Its folder is synced if it can be.

    `through` is the name that it has meanwhile: one of its own, where several processes may write it.

    Raises OSError, and ToolError if a directory is in the way.
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
