"""A sandbox on this node: its tree, commands, transfers, backups and restores. Knows nothing of Ray and HTTP.

Calls arrive in lanes. The mailbox brings backup, restore and destroy, one at a time and in order. Other lanes bring
commands and files, many at once, and questions and cancellations. The tree lock (`TreeLock`) keeps them apart: commands
and files share it for an instant whenever they touch the tree; the mailbox holds it exclusively while the tree must not
change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from actors.config import SandboxConfig
from actors.metrics import UNMETERED, Meter
from actors.models import (
    BackupOptions,
    ChangesPage,
    CommandLimits,
    DirectoryBackup,
    ExecEvent,
    ExecRequest,
    FileEntry,
    ForgetOptions,
    ForgetResult,
    LiveChangesOptions,
    Operation,
    Recovery,
    RestoreBackupResult,
    RestoreOptions,
    SandboxInfo,
    Started,
)
from actors.node.drivers import Driver
from actors.sandbox.destruction import Destruction
from actors.sandbox.mailbox import Mailbox
from actors.sandbox.mending import Mending
from actors.sandbox.operations import Operations
from actors.sandbox.parts import Parts
from actors.sandbox.protocols import Protocols
from actors.sandbox.recovery import DirectoryRecovery
from actors.sandbox.residency import Residency
from actors.sandbox.sandbox_recovery import SandboxRecovery
from actors.sandbox.sleep import Sleep
from actors.sandbox.sleep_backups import SleepBackups
from actors.sandbox.teardown import Teardown
from actors.sandbox.unsaved import UnsavedNote, UnsavedWatch
from actors.sandbox.wake_steps import WakeSteps
from actors.sandbox.work import Work
from actors.state.api_views import public_recovery, public_restored
from actors.state.backup_ledger import SandboxLedger
from actors.state.document import NodeRef, StateRead
from actors.state.ownership import Ownership
from storage.catalog import BackupCatalog
from storage.metadata import Checkpoint


class LocalSandbox:
    """One sandbox, composed of its parts. Cheap to make: the first call wakes it (`wake`), which mounts its files."""

    def __init__(
        self,
        tenant: str,
        sandbox_id: str,
        config: SandboxConfig,
        *,
        driver: Driver | None,
        catalog: BackupCatalog | None,
        cluster_node: str | None = None,
        is_lost: Callable[[str, str | None], bool] = lambda identity, cluster_node: False,
        on_backup: Callable[[], None] = lambda: None,
        meter: Meter = UNMETERED,
    ) -> None:
        """`catalog` is None while no bucket is configured: everything but backup and restore works.

        `cluster_node` is Ray's id of this node. `is_lost` takes another node's identity and Ray's id of it, and tells
        whether that node is gone for good. `on_backup` is called after a backup if there is a retention policy.
        """
        self.id = sandbox_id
        self.tenant = tenant
        self._awake_since = datetime.now(UTC)
        self._operations = operations = Operations()
        self.parts = parts = Parts(tenant, sandbox_id, config, driver=driver)
        self.ownership = ownership = Ownership(
            catalog,
            tenant,
            sandbox_id,
            NodeRef(parts.node, cluster_node),
            record=lambda: parts.restored.record,
            is_lost=is_lost,
        )
        self._protocols = protocols = Protocols(
            tenant, sandbox_id, config, catalog, parts, SandboxLedger(ownership), meter
        )
        look = UnsavedNote(parts.tree, parts.tree_lock, parts.restored, ownership).write
        self.sleep_backups = sleep_backups = SleepBackups(protocols, operations, parts.tree, parts.tree_lock, ownership)
        directories = DirectoryRecovery(sandbox_id, parts.restored, operations, parts.cache)
        recovery = SandboxRecovery(sandbox_id, parts.restored, ownership, directories, protocols)
        teardown = Teardown(parts.resources, parts.quiescence, parts.restored, ownership)
        wake_steps = WakeSteps(
            resources=parts.resources,
            quiescence=parts.quiescence,
            tree=parts.tree,
            restored=parts.restored,
            ownership=ownership,
            mending=Mending(
                tenant,
                parts.restored,
                ownership,
                parts.verified,
                spool=parts.spool,
                node=parts.node,
                fetch=protocols.fetch,
            ),
            recovery=recovery,
            sleep_backups=sleep_backups,
            teardown=teardown,
        )
        self._residency = Residency(
            sandbox_id,
            resources=parts.resources,
            tree_lock=parts.tree_lock,
            quiescence=parts.quiescence,
            restored=parts.restored,
            ownership=ownership,
            wake_steps=wake_steps,
            teardown=teardown,
            sleep_backups=sleep_backups,
            look=look,
            meter=meter,
        )
        self._sleep = Sleep(
            sandbox=sandbox_id,
            protocols=protocols,
            residency=self._residency,
            resources=parts.resources,
            tree_lock=parts.tree_lock,
            quiescence=parts.quiescence,
            restored=parts.restored,
            ownership=ownership,
            teardown=teardown,
            backups=sleep_backups,
        )
        self._destruction = Destruction(
            sandbox=sandbox_id,
            operations=operations,
            resources=parts.resources,
            tree_lock=parts.tree_lock,
            ownership=ownership,
            teardown=teardown,
        )
        self._mailbox = Mailbox(
            sandbox=sandbox_id,
            operations=operations,
            protocols=protocols,
            residency=self._residency,
            restored=parts.restored,
            ownership=ownership,
            recovery=recovery,
            look=look,
            on_backup=on_backup,
        )
        self._work = Work(
            sandbox=sandbox_id,
            residency=self._residency,
            tree=parts.tree,
            tree_lock=parts.tree_lock,
            commands=parts.commands,
            transfers=parts.transfers,
            restored=parts.restored,
            archiver=parts.archiver,
            unsaved=UnsavedWatch(look),
            pause_s=config.backup.pause_s,
        )

    # --- mailbox

    def create_backup(self, options: BackupOptions, *, idempotency_key: str | None = None) -> DirectoryBackup:
        """See `SandboxCalls.create_backup`."""
        return self._mailbox.create_backup(options, idempotency_key=idempotency_key)

    def restore_backup(self, options: RestoreOptions) -> RestoreBackupResult:
        """See `SandboxCalls.restore_backup`."""
        return self._mailbox.restore_backup(options)

    def forget(self, options: ForgetOptions) -> ForgetResult:
        """See `SandboxCalls.forget`."""
        return self._mailbox.forget(options)

    def destroy(self) -> None:
        """See `Destruction.destroy`."""
        self._destruction.destroy()

    # --- exec, files and reads

    def exec(self, command_id: str, request: ExecRequest) -> Iterator[Started | ExecEvent]:
        """See `SandboxCalls.exec`."""
        return self._work.exec(command_id, request)

    def send_input(self, command_id: str, writer: str, data: bytes) -> bool:
        """See `Commands.send_input`. Wakes nothing: the command runs, or there is none."""
        return self.parts.commands.send_input(command_id, data, writer=writer)

    def end_input(self, command_id: str, writer: str) -> None:
        """See `Commands.end_input`."""
        self.parts.commands.end_input(command_id, writer=writer)

    def cut_input(self, command_id: str, writer: str) -> None:
        """See `Commands.cut_input`."""
        self.parts.commands.cut_input(command_id, writer=writer)

    def read_file(self, transfer_id: str, path: str) -> Iterator[bytes]:
        """See `SandboxCalls.read_file`."""
        return self._work.read_file(transfer_id, path)

    def open_file(self, path: str, mode: int | None) -> str:
        """Begins to write a file; returns the transfer's id."""
        return self._work.open_file(path, mode)

    def open_hydrate(self) -> str:
        """Begins to unpack a tar archive; returns the transfer's id."""
        return self._work.open_hydrate()

    def send(self, transfer_id: str, data: bytes) -> None:
        """Hands bytes to a transfer."""
        self._work.send(transfer_id, data)

    def commit(self, transfer_id: str) -> None:
        """Completes an upload: makes it visible."""
        self._work.commit(transfer_id)

    def abort(self, transfer_id: str) -> None:
        """Ends a transfer and discards what is not visible yet."""
        self._work.abort(transfer_id)

    def persist(self, command_id: str, excludes: Sequence[str] = ()) -> Iterator[bytes]:
        """See `SandboxCalls.persist`."""
        return self._work.persist(command_id, excludes)

    def delete_file(self, path: str) -> None:
        """See `SandboxCalls.delete_file`."""
        self._work.delete_file(path)

    def list_files(self, path: str) -> list[FileEntry]:
        """See `SandboxCalls.list_files`."""
        return self._work.list_files(path)

    def changes_since(self, wanted: LiveChangesOptions) -> ChangesPage:
        """See `SandboxCalls.changes_since`."""
        return self._protocols.changes(self._residency).page(wanted)

    # --- control

    def info(self) -> SandboxInfo:
        """The information about the sandbox. Does not wake it."""
        state, restored = self.ownership.last_known, self.parts.restored
        return SandboxInfo(
            id=self.id,
            running=True,
            created_at=state.created_at if state else restored.record.created_at,
            last_used_at=state.last_used_at if state else None,
            epoch=state.epoch if state else 0,
            labels=state.labels if state else {},
            recovery=public_recovery(state.recovery) if state else None,
            awake_since=self._awake_since,
            restored=[public_restored(entry) for entry in restored.entries],
            operation=self._operations.running,
            recent=self._operations.ended,
            commands=self.parts.commands.count,
            limits=self._limits(),
        )

    def _limits(self) -> CommandLimits | None:
        if not self.is_awake:
            return None
        found = self.parts.cgroup.limits()
        return CommandLimits(memory_bytes=found.memory_bytes, processes=found.processes)

    def notice(self) -> Recovery | None:
        """The sandbox's recovery if no caller has confirmed yet that it knows of it; otherwise None."""
        state = self.ownership.last_known if self.is_awake else None
        untold = state is not None and state.recovery is not None and state.recovery.is_untold
        return public_recovery(state.recovery) if state is not None and untold else None

    @property
    def may_have_news(self) -> bool:
        """True if `notice` may return a recovery once the next call is served."""
        return not self.is_awake or self.notice() is not None

    def operation(self) -> Operation | None:
        """The running operation, or None."""
        return self._operations.running

    def cancel(self) -> bool:
        """Cancels the running operation. Returns False if there is none, or if it is past its point of no return."""
        return self._operations.cancel()

    def stop(self, name: str) -> bool:
        """Stops one command or transfer. Returns False if there is none of this name."""
        return self._work.stop(name)

    def expect_command(self) -> None:
        """See `NodeResources.expect_command`."""
        self.parts.resources.expect_command()

    @property
    def is_awake(self) -> bool:
        """See `Residency.is_awake`."""
        return self._residency.is_awake

    @property
    def is_empty(self) -> bool:
        """See `Residency.is_empty`."""
        return self._residency.is_empty

    @property
    def must_stay(self) -> bool:
        """True if the sandbox may not sleep: a transfer is open, or the bucket does not record where its files are."""
        return self.parts.transfers.has_uploads or (self.is_awake and not self.ownership.is_recorded)

    # --- life

    def wake(self) -> None:
        """See `Residency.wake`."""
        self._residency.wake()

    def prepare(self, found: StateRead, *, wake: bool) -> None:
        """See `Residency.prepare`."""
        self._residency.prepare(found, wake=wake)

    def come_back(self) -> None:
        """See `Residency.come_back`."""
        self._residency.come_back()

    def close(self) -> None:
        """See `Residency.close`."""
        self._residency.close()

    def back_up_for_sleep(self) -> list[Checkpoint]:
        """Backs up everything in the sandbox, so that `sleep` can free the node's disk. See `Sleep.back_up`."""
        return self._sleep.back_up()

    def sleep(self, checkpoints: Sequence[Checkpoint] | None = None) -> None:
        """Puts the sandbox to sleep: in the bucket with `checkpoints`, those from `back_up_for_sleep`; else here.

        Raises as `Sleep.in_bucket` and `Sleep.on_node`.
        """
        if checkpoints is None:
            self._sleep.on_node()
        else:
            self._sleep.in_bucket(checkpoints)

    def hand_over(self) -> None:
        """See `Sleep.hand_over`."""
        self._sleep.hand_over()
