"""The backups with which a sandbox sleeps in the bucket: one of each writable root that holds anything."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager

from actors.errors import StorageUnavailableError
from actors.models import WRITABLE_ROOTS, BackupOptions, OperationKind
from actors.node.bubblewrap import HOME
from actors.node.errors import PathError
from actors.node.tree import Tree
from actors.sandbox.operations import Operations
from actors.sandbox.protocols import Protocols
from actors.sandbox.tree_lock import TreeLock
from actors.state.ownership import Ownership
from storage.metadata import Checkpoint

_TTL_S = 36_500 * 86_400.0


class SleepBackups:
    """The sleep backups of one sandbox. Remembers those that it woke from, until the tree changes."""

    def __init__(
        self, protocols: Protocols, operations: Operations, tree: Tree, tree_lock: TreeLock, ownership: Ownership
    ) -> None:
        self._protocols = protocols
        self._operations = operations
        self._tree = tree
        self._tree_lock = tree_lock
        self._ownership = ownership
        self.safe_in: frozenset[str] | None = None
        """The backups that still hold everything, since nothing has changed after their restore; otherwise None."""

    def note_change(self) -> None:
        """Notes that the tree may change, so that no earlier backups hold everything."""
        self.safe_in = None

    def note_restored(self, backup_ids: Iterable[str]) -> None:
        """Notes that the tree is restored from these backups, and holds nothing else."""
        self.safe_in = frozenset(backup_ids)

    def create(self, paused: Callable[[], AbstractContextManager[None]] | None = None) -> list[Checkpoint]:
        """Backs up everything in the sandbox; returns the checkpoints. `paused` is as for `Protocols.creation`.

        Makes no backups if the sandbox has not changed since it woke from such backups; returns those.

        Raises:
            HoldfastError: a directory could not be backed up.
        """
        if self.safe_in is not None and (kept := self._checkpoints(self.safe_in)) is not None:
            return kept
        made = set()
        for top in WRITABLE_ROOTS:
            if self._holds_anything(top):
                with self._operations.run(OperationKind.BACKUP, top) as progress:
                    options = BackupOptions(dir=top, name="asleep", ttl=_TTL_S)
                    creation = self._protocols.creation(of_sleep=True, paused=paused)
                    made.add(creation.create(options, progress).id)
        recorded = self._checkpoints(made)
        if recorded is None:
            raise StorageUnavailableError(
                "The bucket has not taken note of the backups.", context={"outcome": "not_executed"}
            )
        return recorded

    def _checkpoints(self, backup_ids: Collection[str]) -> list[Checkpoint] | None:
        """The checkpoints of these backups; None if one of the backups is no checkpoint."""
        state = self._ownership.state
        found = [row for row in (state.checkpoints if state else ()) if row.backup_id in backup_ids]
        return found if len(found) == len(backup_ids) else None

    def _holds_anything(self, top: str) -> bool:
        with self._tree_lock.shared():
            names = self._tree.some_names(top, at_most=2)
            if [f"{top}/{name}" for name in names] != [HOME]:
                return bool(names)
            try:
                return bool(self._tree.some_names(HOME, at_most=1))
            except PathError:  # HOME is no longer the directory that every sandbox has
                return True
