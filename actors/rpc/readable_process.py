"""A command line and working directory that Ray can read: it records those of each Ray driver, in UTF-8 only.

A file's name on the command line may be any bytes. Without this module, a Ray driver with such a name finds no cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND_LINE = Path("/proc/self/cmdline")


def readable_title() -> str | None:
    """The command line with all bytes escaped that are not UTF-8; None if there are none."""
    words = COMMAND_LINE.read_bytes().removesuffix(b"\0").split(b"\0")
    if _is_text(b" ".join(words)):
        return None
    return " ".join(word.decode("utf-8", "backslashreplace") for word in words)


@contextmanager
def in_readable_folder() -> Iterator[None]:
    """Leaves the working directory within the block if its name is not UTF-8, or if it is gone."""
    try:
        if _is_text(os.getcwdb()):
            yield
            return
    except FileNotFoundError:
        pass
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir("/")
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
