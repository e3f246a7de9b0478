"""The steps that wake a sandbox: locate its files, clean up after earlier actors, mount or recover the files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from actors.errors import ExecStoppedError
from actors.node.bubblewrap import HOME
from actors.node.errors import MountError, NodeError
from actors.node.tree import Tree
from actors.sandbox.mending import Mending
from actors.sandbox.node_resources import NodeResources
from actors.sandbox.quiescence import Quiescence
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.sandbox_recovery import SandboxRecovery
from actors.sandbox.sleep_backups import SleepBackups
from actors.sandbox.teardown import Teardown
from actors.state.location import Origin
from actors.state.ownership import Ownership


class WakeSteps:
    """The steps that wake one sandbox. The caller holds the tree lock."""

    def __init__(
        self,
        *,
        resources: NodeResources,
        quiescence: Quiescence,
        tree: Tree,
        restored: RestoredDirectories,
        ownership: Ownership,
        mending: Mending,
        recovery: SandboxRecovery,
        sleep_backups: SleepBackups,
        teardown: Teardown,
    ) -> None:
        self._resources = resources
        self._quiescence = quiescence
        self._tree = tree
        self._restored = restored
        self._ownership = ownership
        self._mending = mending
        self._recovery = recovery
        self._sleep_backups = sleep_backups
        self._teardown = teardown

    def locate_and_mount(self) -> Origin:
        """Mounts or recovers everything; returns where the files were. After a failure, the next call continues.

        Raises:
            SandboxUnavailableError: a directory cannot be brought back.
            StorageError, NodeError, OSError: the bucket or the node failed.
        """
        origin = self._ownership.locate(has_record=self._restored.exists)
        self._sleep_backups.note_change()
        if origin.is_elsewhere:
            self._put_aside()
            wanted = self._recovery.begin(origin)
            if origin is Origin.SLEEP:  # before the tree is visible: every change resets it
                self._sleep_backups.note_restored(row.backup_id for row in wanted)
        self._resources.prepare()
        self._quiescence.stop(ExecStoppedError("The sandbox was taken up anew, which stopped the command."))
        self._resources.expect_command()
        self._resources.remove_leftovers()
        self._mount_everything(unmended=self._mending.mend())
        self._recovery.go_on(begun=origin.is_elsewhere)
        recovery = self._restored.record.recovery
        if recovery is not None and recovery.forgotten:
            self._sleep_backups.note_change()
        self.make_home()
        return origin

    def make_home(self) -> None:
        """Makes the home directory of the commands, if that is possible."""
        # The sandbox may have put something else there, or filled the disk. It can wake all the same.
        with contextlib.suppress(NodeError, OSError):
            self._tree.make_directory(HOME)

    def _put_aside(self) -> None:
        """Removes the files that this node has of a sandbox whose newer files are elsewhere."""
        self._teardown.unmount_for_good()
        self._teardown.remove_files()

    def _mount_everything(self, unmended: Mapping[str, str]) -> None:
        """Mounts what the record names. `unmended` has the directories whose archives stay damaged, with the causes."""
        try:
            self._mount_recorded()
        except (NodeError, OSError) as e:
            if self._restored.unmounted is None:
                raise
            raise self._recovery.unmounted_error(self._restored.unmounted, e, unmended) from None

    def _mount_recorded(self) -> None:
        """Mounts what the record names. If a mount fails, ends the orphans of earlier actors and tries once more."""
        try:
            self._restored.mount_all()
        except MountError:
            if not self._resources.end_orphans():
                raise
            self._restored.mount_all()
