"""Deleting trees that somebody else has made."""

from __future__ import annotations

from pathlib import Path

from actors.node import process

_DELETE_S = 600.0


def remove_tree(path: Path) -> None:
    """Deletes a file or a tree; nothing being there is success.

    By rm, which goes as deep as a tree can be, and no further than its file system.

    Raises:
        ToolError: something of it could not be deleted.
    """
    process.check(["rm", "-rf", "--one-file-system", "--", str(path)], timeout_s=_DELETE_S)
