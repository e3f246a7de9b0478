"""The stage of a restore by copy: a path beside the directory that is replaced. A note of it survives a crash."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.logs import log
from actors.node.errors import NodeError
from actors.node.removal import remove_tree
from actors.node.tree import TEMPORARY, Tree, temporary_name


class Staging:
    """The stage of one sandbox: at most one at a time."""

    def __init__(self, note: Path, tree: Tree) -> None:
        """`note` is the file that names the stage while there is one."""
        self._note = note
        self._tree = tree

    @contextmanager
    def beside(self, place: str) -> Iterator[Path]:
        """A fresh path beside the directory `place`. Its content is removed after the block, or by `remove`."""
        stage = f"{place.rpartition('/')[0]}/{temporary_name()}"
        self._note.write_text(stage)
        try:
            yield self._tree.place(stage)
        finally:
            self.remove()

    def remove(self) -> None:
        """Removes the stage that the note names, if there is one. If that fails, the note stays. Raises OSError."""
        if not self._note.exists():
            return
        parent, _, name = self._note.read_text().rpartition("/")
        if not TEMPORARY.fullmatch(name):  # the note was cut short: nothing was staged yet
            self._note.unlink()
            return
        try:
            with self._tree.directory(parent or "/") as fd:
                remove_tree(Path(f"/proc/{os.getpid()}/fd/{fd}/{name}"))
            self._note.unlink()
        except (NodeError, OSError) as e:
            log.warning("stage_left_behind", error=type(e).__name__)
