"""Small disks, and files that fill them completely."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from tests.support.mount_leaks import wait_until


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs mounted within the block at `folder`, which is created."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield folder
    finally:
        unmounted(folder)


def unmounted(point: Path) -> None:
    """Unmounts a disk. A process that has just ended, or a loop device being detached, may hold it for a moment."""
    ended: list[subprocess.CompletedProcess[str]] = []

    def is_done() -> bool:
        ended[:] = [subprocess.run(["umount", point], capture_output=True, text=True, check=False)]
        return ended[0].returncode == 0

    assert wait_until(is_done), ended[0].stderr


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Fills the disk of `folder` to the last block, within the block. Can be nested."""
    filler = folder / f"filler-{uuid.uuid4()}"
    try:
        with filler.open("xb", buffering=0) as zeros:
            for size in (1024 * 1024, 4096, 1):
                with suppress(OSError):
                    while zeros.write(b"0" * size):
                        pass
        yield
    finally:
        filler.unlink()


@contextmanager
def without_inodes(folder: Path) -> Iterator[None]:
    """Uses up the free inodes of the disk of `folder`, within the block. Can be nested."""
    fillers = folder / f"fillers-{uuid.uuid4()}"
    with suppress(OSError):
        fillers.mkdir()
        for number in count():
            (fillers / str(number)).touch()
    try:
        yield
    finally:
        shutil.rmtree(fillers, ignore_errors=True)
