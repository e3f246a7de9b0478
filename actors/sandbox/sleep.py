"""The sleep of a sandbox: it gives its process back. Its files stay on the node, or go to the bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.errors import DRAINING, SandboxUnavailableError, StorageUnavailableError
from actors.faults import unavailable_unless
from actors.logs import log
from actors.sandbox.node_resources import NodeResources
from actors.sandbox.protocols import Protocols
from actors.sandbox.quiescence import Quiescence
from actors.sandbox.residency import Residency
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.sleep_backups import SleepBackups
from actors.sandbox.teardown import Teardown
from actors.sandbox.tree_lock import TreeLock
from actors.state.document import happened
from actors.state.ownership import Ownership
from storage.errors import StorageError
from storage.metadata import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Puts one sandbox to sleep."""

    sandbox: str
    protocols: Protocols
    residency: Residency
    resources: NodeResources
    tree_lock: TreeLock
    quiescence: Quiescence
    restored: RestoredDirectories
    ownership: Ownership
    teardown: Teardown
    backups: SleepBackups

    def back_up(self) -> list[Checkpoint]:
        """Wakes the sandbox and backs up everything in it (`SleepBackups.create`). Changes nothing else."""
        self.protocols.check_configured()
        self.residency.wake()
        return self.backups.create()

    def on_node(self) -> None:
        """Ends everything that runs and unmounts everything. The next call wakes the sandbox with all its files.

        Raises:
            NodeError: a mount is in use; the next call wakes the sandbox with all its files.
            StorageUnavailableError: the sleep could not be written to the bucket; likewise.
            SandboxUnavailableError: another actor has taken over.
        """
        if self.residency.is_awake and not self.ownership.is_recorded:
            self.ownership.report(lambda state: state)
        with self.tree_lock.repairing():
            was_awake = self.residency.is_awake
            if was_awake and not self.ownership.is_recorded:
                raise StorageUnavailableError(
                    "The bucket does not know yet where the sandbox's files are.", context={"outcome": "not_executed"}
                )
            self.teardown.unmount()
            try:
                if was_awake:
                    self.ownership.report(lambda state: happened(state, "slept"))
                    self.ownership.clear_sleep()
            finally:
                self.teardown.release()
                self.ownership.life.close()

    def in_bucket(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Does as `on_node`, and removes the files from this node: the sandbox can wake on any node.

        Args:
            checkpoints: those of `SleepBackups.create`.

        Raises:
            NodeError, StorageUnavailableError: as `on_node`.
            SandboxUnavailableError: another actor has taken over, or the sandbox is not awake; nothing was removed.
        """
        if not self.residency.is_awake:
            raise SandboxUnavailableError(
                "The sandbox is not awake, so it is not known whether all of it is backed up.",
                context={"outcome": "not_executed"},
            )
        with self.tree_lock.repairing():
            self.teardown.unmount_for_good()
            try:
                self._write(checkpoints)
                self.teardown.remove_files()
            except BaseException:
                self.resources.release()
                raise
            self.resources.release(for_good=True)
        self.ownership.clear_sleep()

    def _write(self, checkpoints: Sequence[Checkpoint]) -> None:
        try:
            self.ownership.sleep(checkpoints)
        except StorageError as e:
            log.warning("sleep_not_written", sandbox=self.sandbox, detail=str(e))
            raise StorageUnavailableError(
                "The bucket could not be told that the sandbox sleeps.", context={"outcome": "unknown"}
            ) from None

    def hand_over(self) -> None:
        """Moves the sandbox into the bucket, even if commands run, so that it can wake on another node. Repeatable.

        Running commands are paused until everything is backed up, and then ended: nothing that they have written is
        lost. Does nothing if the sandbox has no files on this node, or newer ones elsewhere.

        Raises:
            HoldfastError: the sandbox is still on this node, and the next call finds it with all its files.
        """
        if not self.residency.is_awake:
            with unavailable_unless(self.sandbox, "handed over", outcome="not_executed"):
                if not self.restored.exists or not self.ownership.may_be_here():
                    return
            self.residency.wake()
        with unavailable_unless(self.sandbox, "handed over", outcome="not_executed"):
            self.ownership.check()  # before the pause: no command is paused for a bucket that does not answer
        with self.tree_lock.alone(), unavailable_unless(self.sandbox, "handed over", outcome="not_executed"):
            with self.quiescence.commands_paused():
                checkpoints = self.backups.create(self.quiescence.undamaged)
                self.quiescence.stop(_moved())
            self.in_bucket(checkpoints)


def _moved() -> SandboxUnavailableError:
    """The error of a call that a hand-over has ended."""
    return SandboxUnavailableError(
        "The sandbox's node is being drained, which ended the call; what it had written until then was kept.",
        hint="Look at the sandbox's state before you repeat the call.",
        context={"outcome": "unknown", "reason": DRAINING},
    )
