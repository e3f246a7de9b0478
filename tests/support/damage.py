"""Damage to a file by a disk or by a person on the node."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from actors.node.removal import remove_tree
from actors.node.verified import Verified, stamp_of


def flip(path: Path) -> None:
    """Flips one bit in the middle of the file, in place."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
        file.flush()
        os.fsync(file.fileno())


def flip_with_old_times(path: Path) -> None:
    """Flips one bit, and restores the times that can be set."""
    status = path.stat()
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip_unseen(path: Path, sha256: str, verified: Verified) -> None:
    """Flips one bit, and updates the node's verification record to fit, as if the disk had done it unseen."""
    flip(path)
    verified.note(path, sha256, as_of=stamp_of(path))


def flipped(data: bytes) -> Iterator[bytes]:
    """The data with one bit flipped, for each bit in turn."""
    for position in range(len(data)):
        for bit in range(8):
            other = bytearray(data)
            other[position] ^= 1 << bit
            yield bytes(other)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _replace(path: Path) -> None:
    """Replaces the file with a damaged copy."""
    other = path.with_name(".other")
    shutil.copy2(path, other)
    flip(other)
    other.replace(path)


def by_directory(path: Path) -> None:
    """Replaces the file with a directory."""
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _by_link(path: Path) -> None:
    other = path.with_name("other")
    path.rename(other)
    flip(other)
    path.symlink_to(other)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "one flipped bit": flip,
    "a flipped bit, old times": flip_with_old_times,
    "truncated": _truncate,
    "empty": lambda path: os.truncate(path, 0),
    "replaced": _replace,
    "missing": remove_tree,
    "a directory": by_directory,
    "a symbolic link": _by_link,
    "open to all": lambda path: path.chmod(0o666),
}
