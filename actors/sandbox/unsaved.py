"""Finds the parts of a sandbox's tree that are in no backup, so that their loss can be reported.

Each look opens a few directories only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

from actors.background import Background
from actors.errors import SandboxUnavailableError
from actors.models import WRITABLE_ROOTS
from actors.node.bubblewrap import HOME
from actors.node.errors import NodeError, PathError
from actors.node.tree import Tree
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.tree_lock import TreeLock
from actors.state.ownership import Ownership
from storage.metadata import SandboxState

_FIRST_LOOK_S, _LOOK_S = 1.0, 30.0
"""Time to the first look while a command runs, and longest time between two looks."""

T = TypeVar("T")


class UnsavedNote:
    """The note, in the state document, of which roots of one sandbox hold unsaved files."""

    def __init__(self, tree: Tree, tree_lock: TreeLock, restored: RestoredDirectories, ownership: Ownership) -> None:
        self._tree = tree
        self._tree_lock = tree_lock
        self._restored = restored
        self._ownership = ownership

    def write(self) -> None:
        """Looks at the tree and notes what it finds. Does nothing if the tree cannot be looked at now."""
        state = self._ownership.last_known
        saved = {row.dir for row in (state.checkpoints if state else ())}
        saved |= {entry.dir for entry in self._restored.record.entries}
        with contextlib.suppress(NodeError, OSError, SandboxUnavailableError), self._tree_lock.shared():
            self._ownership.note_unsaved(unsaved_roots(self._tree, saved))


class UnsavedWatch:
    """Looks at the tree in a background thread: while a command runs, and after each change.

    A look needs the tree lock, which a backup may hold for as long as the archive takes.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._background = Background("unsaved", self._look_again)
        self._counting = threading.Lock()
        self._followed = 0
        """Number of running commands that are followed to their end."""
        self._pause_s = _FIRST_LOOK_S

    def following(self, events: Iterator[T]) -> Iterator[T]:
        """Passes on the events of a command; looks now and then while it runs, and once after its end."""
        with self._counting:
            self._followed += 1
            self._pause_s = _FIRST_LOOK_S
        self._background.ask(after_s=_FIRST_LOOK_S)
        try:
            yield from events
        finally:
            with self._counting:
                self._followed -= 1
            self.look_soon()

    def look_soon(self) -> None:
        """Asks for a look, after a change of the tree. Returns at once."""
        self._background.ask()

    def _look_again(self) -> float | None:
        self._look()
        with self._counting:
            self._pause_s = min(2 * self._pause_s, _LOOK_S)
            return self._pause_s if self._followed else None


def unsaved_roots(tree: Tree, saved: Collection[str]) -> list[str]:
    """The writable roots that hold anything outside the directories `saved`. Raises NodeError."""
    return [root for root in WRITABLE_ROOTS if _holds_anything_else(tree, root, saved)]


def _holds_anything_else(tree: Tree, root: str, saved: Collection[str]) -> bool:
    """True if `root` holds anything else. Reads only the parents of the saved directories, not the whole tree."""
    passages = {parent for directory in (*saved, HOME) for parent in _parents(directory)} | {HOME}
    to_see = [root]
    while to_see:
        directory = to_see.pop()
        if directory in saved:
            continue
        known = {name for name in (*saved, *passages) if name.rpartition("/")[0] == directory}
        try:
            found = {f"{directory}/{name}" for name in tree.some_names(directory, at_most=len(known) + 1)}
        except PathError:  # no longer the directory that led to a saved one
            return True
        if found - known:
            return True
        to_see += found
    return False


def _parents(directory: str) -> Iterable[str]:
    while directory := directory.rpartition("/")[0]:
        yield directory


def lost_with(state: SandboxState) -> list[str]:
    """The writable roots that lose something for good with the sandbox's files.

    If an earlier release did not note which roots hold unsaved files, every root without a checkpoint counts as lost.
    Losses of an earlier recovery that no caller knows of yet are included.
    """
    saved = {row.dir for row in state.checkpoints}
    roots = WRITABLE_ROOTS if state.unsaved is None else state.unsaved
    lost = [root for root in roots if root not in saved]
    before = state.recovery
    untold = (before.lost or []) if before is not None and before.is_untold else []
    return [*lost, *(root for root in untold if root not in lost)]
