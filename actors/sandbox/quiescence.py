"""The quiescence of a sandbox: its commands and transfers are paused or stopped, so that its tree does not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from actors.errors import BackupCreateError, ExecStoppedError, HoldfastError, SandboxUnavailableError
from actors.node.kept import KeptArchives
from actors.sandbox.commands import Commands
from actors.sandbox.transfers import Transfers
from actors.sandbox.tree_lock import TreeLock


class Quiescence:
    """Pauses and stops everything that runs in one sandbox."""

    def __init__(self, commands: Commands, transfers: Transfers, tree_lock: TreeLock, kept: KeptArchives) -> None:
        """`kept` holds the archives that the sandbox's layers are mounted from."""
        self._commands = commands
        self._transfers = transfers
        self._tree_lock = tree_lock
        self._kept = kept

    def stop(self, error: HoldfastError) -> None:
        """Stops every command and transfer. Their callers get `error`."""
        self._commands.stop_all(error)
        self._transfers.abort_all(error if isinstance(error, SandboxUnavailableError) else None)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops everything for a restore, and lets nothing begin within the block."""
        with self._tree_lock.alone():
            self.stop(ExecStoppedError("A restore stopped the command."))
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pauses everything that could change the tree, for a backup. Raises as `undamaged`."""
        with self._tree_lock.alone(), self._commands.paused(), self.undamaged():
            yield

    def commands_paused(self) -> AbstractContextManager[None]:
        """Pauses the commands within the block. The caller holds the tree lock."""
        return self._commands.paused()

    @contextmanager
    def undamaged(self) -> Iterator[None]:
        """Checks, before and after the block, that the archives under the restored directories are undamaged.

        Raises:
            BackupCreateError: an archive has changed, so a backup could be wrong.
        """
        self._check_archives()
        yield
        self._check_archives()

    def _check_archives(self) -> None:
        if self._kept.is_disturbed():
            raise BackupCreateError(
                "The backup could not be created: the archive under a restored directory was damaged on the node.",
                hint="Try again; it is fetched and mounted anew.",
                context={"reason": "DAMAGED_COPY"},
            )
