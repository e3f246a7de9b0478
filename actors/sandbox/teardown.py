"""The teardown of a sandbox: what runs in it ends, it is unmounted, and, if it goes for good, its files go."""

from __future__ import annotations

from actors.errors import ExecStoppedError
from actors.sandbox.node_resources import NodeResources
from actors.sandbox.quiescence import Quiescence
from actors.sandbox.restored_directories import RestoredDirectories
from actors.state.ownership import Ownership


class Teardown:
    """The steps that tear one sandbox down. The caller holds the tree lock."""

    def __init__(
        self, resources: NodeResources, quiescence: Quiescence, restored: RestoredDirectories, ownership: Ownership
    ) -> None:
        self._resources = resources
        self._quiescence = quiescence
        self._restored = restored
        self._ownership = ownership

    def unmount(self) -> None:
        """Ends everything that runs and unmounts everything; files and layers stay. Raises NodeError."""
        self._quiescence.stop(ExecStoppedError("The end of the sandbox stopped the command."))
        self._restored.unmount_all()
        self._resources.remove_control_group()

    def unmount_for_good(self) -> None:
        """Does as `unmount`, and unmounts what earlier actors have left, so that the files can be removed."""
        self.unmount()
        self._resources.sweep()

    def remove_files(self) -> None:
        """Removes the sandbox's files from this node, and its record with them. Raises NodeError, OSError."""
        if self._resources.remove_folder():
            self._restored.release_lowers()
        self._restored.forget()

    def release(self) -> None:
        """Ends the ownership and releases the node's resources. The sandbox may now wake in another process."""
        self._ownership.close()
        self._resources.release()
