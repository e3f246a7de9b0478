"""Deletes file trees that other programs have made."""

from __future__ import annotations

import os
from pathlib import Path

from actors.node import process

_DELETE_S = 600.0


def remove_tree(path: Path) -> None:
    """Deletes a file or a tree; success if nothing is there.

    It runs rm, which copes with any depth and stays on one file system.

    Raises:
        ToolError: a part of it could not be deleted.
    """
    if os.path.lexists(path):
        process.check(["rm", "-rf", "--one-file-system", "--", str(path)], timeout_s=_DELETE_S)
