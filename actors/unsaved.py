"""What of a sandbox's tree is in no backup, so that its loss can be named. A look costs a few opened directories."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from actors.models import WRITABLE_ROOTS
from actors.node.bubblewrap import HOME
from actors.node.errors import PathError
from actors.node.tree import Tree
from storage.metadata import SandboxState


def unsaved_roots(tree: Tree, saved: Collection[str]) -> list[str]:
    """The writable roots that hold anything outside of the directories `saved`. Raises NodeError."""
    return [root for root in WRITABLE_ROOTS if _holds_anything_else(tree, root, saved)]


def _holds_anything_else(tree: Tree, root: str, saved: Collection[str]) -> bool:
    """Looks along the ways to those directories only, not at the whole tree."""
    passages = {parent for directory in (*saved, HOME) for parent in _parents(directory)} | {HOME}
    to_see = [root]
    while to_see:
        directory = to_see.pop()
        if directory in saved:
            continue
        known = {name for name in (*saved, *passages) if name.rpartition("/")[0] == directory}
        try:
            found = {f"{directory}/{name}" for name in tree.some_names(directory, at_most=len(known) + 1)}
        except PathError:  # something else than the directory that led to a saved one
            return True
        if found - known:
            return True
        to_see += found
    return False


def _parents(directory: str) -> Iterable[str]:
    while directory := directory.rpartition("/")[0]:
        yield directory


def lost_with(state: SandboxState) -> list[str]:
    """The writable roots of which something is lost for good with the sandbox's files.

    Where an earlier release has taken no note of what they held, those are named of which there is no checkpoint.
    """
    saved = {row.dir for row in state.checkpoints}
    roots = WRITABLE_ROOTS if state.unsaved is None else state.unsaved
    lost = [root for root in roots if root not in saved]
    before = state.recovery
    untold = (before.lost or []) if before is not None and before.is_untold else []
    return [*lost, *(root for root in untold if root not in lost)]
