"""The destruction of a sandbox: its files and its state document are removed; its backups stay."""

from __future__ import annotations

from dataclasses import dataclass

from actors.errors import StorageUnavailableError
from actors.faults import unavailable_unless
from actors.logs import log
from actors.models import OperationKind, Phase
from actors.sandbox.node_resources import NodeResources
from actors.sandbox.operations import Operations
from actors.sandbox.teardown import Teardown
from actors.sandbox.tree_lock import TreeLock
from actors.state.ownership import Ownership
from storage.errors import StorageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Destruction:
    """Destroys one sandbox."""

    sandbox: str
    operations: Operations
    resources: NodeResources
    tree_lock: TreeLock
    ownership: Ownership
    teardown: Teardown

    def destroy(self) -> None:
        """Ends everything and removes the sandbox's files and state document; its backups stay. Repeatable.

        Raises:
            SandboxUnavailableError: a part of the sandbox is still in use; call again.
            DocumentDamagedError: a later release has written the state document; nothing was removed.
            StorageUnavailableError: the bucket does not answer; call again. The context says if the files are gone.
        """
        with self.operations.run(OperationKind.DESTROY) as progress:
            progress.point_of_no_return(Phase.WAITING)
            with self.tree_lock.repairing():
                self.ownership.check_forgettable()
                with unavailable_unless(self.sandbox, "destroyed", outcome="unknown"):
                    self.resources.claim_to_destroy()
                    self.teardown.unmount_for_good()
                    self.teardown.remove_files()
                try:
                    self._delete_state()  # under the lock: an actor that finds the state but no files recovers them
                finally:
                    self.resources.release(for_good=True)

    def _delete_state(self) -> None:
        try:
            self.ownership.forget()
        except StorageError as e:
            log.warning("state_not_deleted", sandbox=self.sandbox, detail=str(e))
            raise StorageUnavailableError(
                "The sandbox's files are gone, but the bucket could not be told.",
                hint="Delete it again.",
                context={"outcome": "unknown"},
            ) from None
