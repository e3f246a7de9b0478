"""Copies directories into and out of a sandbox, as tar archives, for `holdfast cp -r`.

An archive from a sandbox is untrusted. Nothing of it is written outside of the new directory: names that lead out are
refused, nothing is written through a link, and devices are left out. Links are kept as they are.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from actors.errors import InvalidRequestError
from actors.models import TRANSFER_BYTES

_END = bytes(1024)
"""Two empty blocks end an archive. Source: tar(5)."""


@dataclass(slots=True)
class Copied:
    """The number of bytes in the copied files, and the names that were left out: sockets and devices."""

    total_bytes: int = 0
    left_out: list[str] = field(default_factory=list)


def pack(folder: Path, name: str, send: Callable[[bytes], None]) -> Copied:
    """Sends a local directory as an archive, in which it is called `name`, in pieces of `TRANSFER_BYTES`.

    Raises OSError.
    """
    copied = Copied()

    def chosen(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.isdev() and not member.isfifo():
            copied.left_out.append(member.name)
            return None
        copied.total_bytes += member.size if member.isfile() else 0
        return member

    with tarfile.open(
        fileobj=_Sender(send),
        mode="w|",
        bufsize=TRANSFER_BYTES,
        format=tarfile.GNU_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    ) as archive:
        archive.add(folder.resolve(), arcname=name, filter=chosen)
    copied.left_out += _sockets(folder)
    return copied


def unpack(pieces: Iterable[bytes], target: Path) -> Copied:
    """Unpacks an archive of one directory as the new directory `target`, which appears whole or not at all.

    Raises:
        InvalidRequestError: a name leads out of the directory, or this is no such archive.
        OSError: the directory cannot be written.
    """
    copied = Copied()
    with _scratch(target) as scratch:
        incoming = _Pieces(iter(pieces))
        try:
            with tarfile.open(fileobj=incoming, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
                _write_members(archive, scratch, copied)
            incoming.check_end()
        except tarfile.TarError as e:
            raise InvalidRequestError(f"What came out of the sandbox is no whole tar archive: {e}.") from None
        made = list(scratch.iterdir())
        if len(made) != 1 or not made[0].is_dir() or made[0].is_symlink():
            raise InvalidRequestError("What came out of the sandbox is no directory.")
        made[0].rename(target)
    return copied


def _write_members(archive: tarfile.TarFile, root: Path, copied: Copied) -> None:
    modes: list[tuple[Path, int]] = []
    for member in archive:
        place = _place(root, member.name)
        mode = member.mode & 0o777
        if member.isdir():
            place.mkdir(mode=0o700)
            modes.append((place, mode))
        elif member.issym():
            place.symlink_to(member.linkname)
        elif member.islnk():
            os.link(_place(root, member.linkname), place, follow_symlinks=False)
        elif member.isfifo():
            os.mkfifo(place, mode)
        elif member.isfile():
            content = archive.extractfile(member)
            assert content is not None
            copied.total_bytes += _write_file(place, content, mode)
        else:
            copied.left_out.append(member.name)
    for place, mode in reversed(modes):  # last, since a directory may become read-only
        place.chmod(mode)


def _write_file(place: Path, content: IO[bytes], mode: int) -> int:
    with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        shutil.copyfileobj(content, file, TRANSFER_BYTES)
        os.fchmod(file.fileno(), mode)
        return file.tell()


def _place(root: Path, name: str) -> Path:
    """The path of a member below the root. Refuses names that lead out of it, or through a link or a file."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InvalidRequestError(f"A name in the sandbox's archive leads out of it: {name[:200]!r}.")
    place = root
    for part in path.parts[:-1]:
        place = place / part
        if place.is_symlink() or not place.is_dir():
            raise InvalidRequestError(f"A name in the sandbox's archive leads through a link: {name[:200]!r}.")
    return place / path.name


def _sockets(folder: Path) -> Iterator[str]:
    for directory, _, names in os.walk(folder):
        for name in names:
            if stat.S_ISSOCK(os.lstat(os.path.join(directory, name)).st_mode):
                yield os.path.relpath(os.path.join(directory, name), folder)


def check_parent(target: Path) -> None:
    """Raises the OSError that names the parent directory of `target`, if that directory is missing."""
    os.stat(target.parent / ".")


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    check_parent(target)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:64]}."))
    try:
        yield scratch
    finally:
        for directory, _, _ in os.walk(scratch):
            os.chmod(directory, 0o700)
        shutil.rmtree(scratch)


class _Sender(io.RawIOBase):
    """A writable file that sends what is written to it."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._send(bytes(data))
        return len(data)


class _Pieces(io.RawIOBase):
    """A readable file made of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._tail = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
            self._note(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def check_end(self) -> None:
        """Raises ReadError unless the archive's end mark has come: tarfile accepts an archive without one."""
        for piece in self._pieces:
            self._note(piece)
        if self._tail != _END:
            raise tarfile.ReadError("its end is missing")

    def _note(self, piece: bytes) -> None:
        self._tail = (self._tail + piece[-len(_END) :])[-len(_END) :]
