"""A sandbox on this node: its tree, commands, transfers, backups and restores. Knows nothing of Ray and HTTP.

Calls arrive in lanes. The mailbox brings backup, restore and destroy, one at a time and in order. Other lanes bring
commands and files, many at once, and questions and cancellations. The tree lock (`TreeLock`) keeps them apart: commands
and files share it for an instant whenever they touch the tree; the mailbox holds it exclusively while the tree must not
change.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from actors.bucket import configured
from actors.config import SandboxConfig
from actors.errors import (
    DRAINING,
    BackupCreateError,
    ExecStoppedError,
    HoldfastError,
    InvalidRequestError,
    MountLostError,
    SandboxUnavailableError,
    StorageUnavailableError,
)
from actors.faults import reason_of, unavailable_unless
from actors.logs import log
from actors.metrics import UNMETERED, WAKES, Meter
from actors.models import (
    WRITABLE_ROOTS,
    BackupOptions,
    CommandLimits,
    DirectoryBackup,
    DirectoryStatus,
    ExecEvent,
    ExecRequest,
    FileEntry,
    FileKind,
    ForgetOptions,
    ForgetResult,
    Operation,
    OperationKind,
    Phase,
    RecoveredDirectory,
    Recovery,
    RestoreBackupResult,
    RestoreMode,
    RestoreOptions,
    SandboxInfo,
    writable_path,
)
from actors.node import actor_group, holders
from actors.node.archive_cache import ArchiveCache
from actors.node.archiver import Archiver
from actors.node.bubblewrap import HOME, Bind, Box
from actors.node.cgroup import Cgroup, announce_entry
from actors.node.drivers import Driver
from actors.node.errors import MountBusyError, MountError, NodeError, PathError, TreeError, is_full
from actors.node.kept import KeptArchives
from actors.node.layers import Layer, Layers
from actors.node.mounting import sweep
from actors.node.removal import remove_tree
from actors.node.survey import Limits
from actors.node.tree import Tree
from actors.node.user_namespace import UserNamespace
from actors.node.verified import Verified
from actors.node_layout import NodeLayout
from actors.sandbox.commands import Commands
from actors.sandbox.mending import Mending, Watch, disturbed
from actors.sandbox.operations import Operations
from actors.sandbox.recovery import DIRECTORY_MISSING, DirectoryRecovery, recovery_plan
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.sandbox_lock import SandboxLock
from actors.sandbox.steps import RestoreStep, step
from actors.sandbox.tar_excludes import tar_excludes
from actors.sandbox.transfers import Transfers, translated
from actors.sandbox.tree_lock import TreeLock
from actors.sandbox.unsaved import UnsavedWatch, unsaved_roots
from actors.state.api_views import public_recovery
from actors.state.backup_ledger import SandboxLedger
from actors.state.changes import (
    after_forgetting,
    after_recovery,
    after_restore,
    missing_in,
    recovery_in,
    with_unmounted,
)
from actors.state.document import NodeRef, StateRead, happened
from actors.state.location import Origin
from actors.state.node_record import Entry, RecoveryItem, kept_driver
from actors.state.ownership import Ownership, superseded
from storage.catalog import BackupCatalog
from storage.errors import StorageError
from storage.metadata import Checkpoint

if TYPE_CHECKING:
    from actors.sandbox.backup import BackupCreation
    from actors.sandbox.fetch import ArchiveFetch
    from actors.sandbox.restore import BackupRestoration

_LISTED = 10_000
_UNMOUNT_S = 10.0
_AGAIN = "Try again."
_SLEEP_TTL_S = 36_500 * 86_400.0


class LocalSandbox:
    """One sandbox. Cheap to make: the first call wakes it (`wake`), which mounts its files."""

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
        meter: Meter = UNMETERED,
    ) -> None:
        """`catalog` is None while no bucket is configured: everything but backup and restore works.

        `cluster_node` is Ray's id of this node. `is_lost` takes another node's identity and Ray's id of it, and tells
        whether that node is gone for good.
        """
        self.id = sandbox_id
        self.tenant = tenant
        self._config = config
        self._catalog = catalog
        self._meter = meter
        layout = NodeLayout(config.node)
        self._home = layout.box(tenant, sandbox_id)
        self._sandbox_lock = SandboxLock(layout.sandbox_lock(tenant, sandbox_id))
        self._layout = layout
        record = self._home / "sandbox.json"
        root, uid = self._home / "root", config.node.sandbox_uid
        self._tree = Tree(root, tops=WRITABLE_ROOTS, uid=uid)
        binds = tuple(Bind(root / top.lstrip("/"), top, writable=True) for top in WRITABLE_ROOTS)
        self._user_namespace = UserNamespace(
            layout.namespace_owners,
            uid,
            on_obstacle=lambda reason: log.warning("user_limits_shared", sandbox=sandbox_id, reason=reason),
        )
        box = Box(
            uid=uid,
            hostname=sandbox_id[:63],
            binds=binds,
            network=config.node.network,
            user_namespace=self._user_namespace,
        )
        self._cgroup = Cgroup(
            layout.sandbox_cgroup(tenant, sandbox_id),
            memory_bytes=config.exec.memory_bytes,
            processes=config.exec.processes,
        )
        self._tree_lock = TreeLock(lambda: self._restored.is_whole)
        self._commands = Commands(
            box,
            self._cgroup,
            limits=config.exec,
            tree_lock=self._tree_lock,
            has_lost_mount=lambda: self._layers.has_lost or self._kept.is_disturbed(),
        )
        self._transfers = Transfers(self._tree, self._commands, self._tree_lock, spool=self._home / "spool")
        self._layers = Layers(
            self._home / "layers", layout.lowers, driver=kept_driver(record, driver), on_lost=self._revive
        )
        self._verified = Verified(layout.verified)
        self._kept = KeptArchives(self._home / "archives", self._verified)
        self._restored = RestoredDirectories(record, self._tree, self._layers, self._kept)
        self._watch = Watch(self._look_at_archives)
        self._operations = Operations()
        self._awake_since = datetime.now(UTC)
        self._is_new = True
        """True until the sandbox is woken, closed or destroyed for the first time."""
        self._safe_in: frozenset[str] | None = None
        """The backups that still hold everything, since nothing has changed after their restore; otherwise None."""
        self._waking = threading.Lock()
        self._unsaved = UnsavedWatch(self._look)
        self.ownership = Ownership(
            catalog,
            tenant,
            sandbox_id,
            NodeRef(layout.identity(), cluster_node),
            record=lambda: self._restored.record,
            is_lost=is_lost,
        )
        limits = config.backup
        self._archiver = Archiver(
            box,
            self._tree,
            limits=Limits(limits.inodes, limits.source_bytes, limits.hole_bytes, limits.depth),
            memory_bytes=limits.memory_bytes,
        )
        self._cache = ArchiveCache(layout.cache, max_bytes=config.node.cache_max_bytes, verified=self._verified)
        self._mending = Mending(
            tenant,
            self._restored,
            self.ownership,
            self._verified,
            spool=self._home / "spool",
            node=layout.identity(),
        )
        self._recovery = DirectoryRecovery(sandbox_id, self._restored, self._operations, self._cache)

    # --- mailbox

    def create_backup(self, options: BackupOptions, *, idempotency_key: str | None = None) -> DirectoryBackup:
        """See `SandboxCalls.create_backup`."""
        catalog = configured(self._catalog, self._config)
        self.wake()
        with self._operations.run(OperationKind.BACKUP, options.dir) as progress:
            handle = self._creation(catalog).create(options, progress, idempotency_key=idempotency_key)
        self._look()
        return handle

    def _creation(
        self,
        catalog: BackupCatalog,
        *,
        of_sleep: bool = False,
        paused: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> BackupCreation:
        from actors.sandbox.backup import BackupCreation  # imported late: commands do not need it

        return BackupCreation(
            tenant=self.tenant,
            sandbox=self.id,
            uid=self._config.node.sandbox_uid,
            catalog=catalog,
            archiver=self._archiver,
            cache=self._cache,
            spool=self._home / "spool",
            transfer=self._config.transfer,
            pause_s=self._config.backup.pause_s,
            ledger=SandboxLedger(self.ownership),
            paused=paused or self._paused,
            of_sleep=of_sleep,
            meter=self._meter,
        )

    def restore_backup(self, options: RestoreOptions) -> RestoreBackupResult:
        """See `SandboxCalls.restore_backup`."""
        catalog = configured(self._catalog, self._config)
        try:
            self._wake_to_change()
        except SandboxUnavailableError as e:
            if e.context.get("reason") != DIRECTORY_MISSING:
                raise
            result = self._restore_instead(options, catalog)
            if result is None:
                raise
            return result
        return self._restore(options, catalog, self._stopped)

    def _restore(
        self, options: RestoreOptions, catalog: BackupCatalog, stopped: Callable[[], AbstractContextManager[None]]
    ) -> RestoreBackupResult:
        with self._operations.run(OperationKind.RESTORE, options.dir) as progress:
            entry = self._restoration(catalog, stopped).restore(options, progress)
        self._watch.begin()
        with step(RestoreStep.REPORT):
            self.ownership.report(lambda state: after_restore(state, self._restored.record, entry))
        self._look()
        mode = RestoreMode(entry.mode)
        return RestoreBackupResult(dir=options.dir, id=options.id, mode=None if mode is options.mode else mode)

    def _restore_instead(self, options: RestoreOptions, catalog: BackupCatalog) -> RestoreBackupResult | None:
        """Restores in place of missing directories, and forgets them in the same step.

        Returns None, and does nothing, if the restore would replace no missing directory.
        """
        with self._waking, self._tree_lock.repairing():
            unmounted = self._restored.unmounted
            if unmounted is not None:
                return self._restore_over(unmounted, options, catalog) if unmounted.lies_in(options.dir) else None
            settled = self._recovery.settled_by(options)
            if not settled:
                return None
            with self._restored.recovering(settled):
                result = self._restore(options, catalog, self._tree_lock.repairing)
            self._tell_of_giving_up(settled)
            self._is_new, self._safe_in = False, None
            self._make_home()
        return result

    def _restore_over(self, unmounted: Entry, options: RestoreOptions, catalog: BackupCatalog) -> RestoreBackupResult:
        """Restores in place of an overlay that cannot be mounted, or above it. If this fails, the overlay is unchanged.

        The caller holds the tree lock: meanwhile `is_whole` is true although the overlay is not mounted.
        """
        try:
            with self._unavailable_unless("taken up", outcome="not_executed", hint=_AGAIN):
                self._restored.mount_all(but_in=options.dir)
            result = self._restore(options, catalog, self._tree_lock.repairing)
        except BaseException:
            with contextlib.suppress(NodeError, OSError):
                self._restored.unmount_all()
            self._restored.unmounted = self._restored.unmounted or unmounted
            raise
        with contextlib.suppress(NodeError, OSError):
            if not self._restored.is_open:  # a symbolic link led the restore elsewhere
                self._restored.unmount_all()
                return result
            self._restored.discard_leftovers()
        self._recover(begun=False)
        self._is_new, self._safe_in = False, None
        self._make_home()
        return result

    def _restoration(
        self, catalog: BackupCatalog, stopped: Callable[[], AbstractContextManager[None]]
    ) -> BackupRestoration:
        from actors.sandbox.restore import BackupRestoration  # imported late, as above

        return BackupRestoration(
            tenant=self.tenant,
            sandbox=self.id,
            catalog=catalog,
            archiver=self._archiver,
            fetch=self._fetch(catalog),
            verified=self._verified,
            tree=self._tree,
            layers=self._layers,
            restored=self._restored,
            spool=self._home / "spool",
            stopped=stopped,
            restores_unsigned=self._config.restore_unsigned,
        )

    def _fetch(self, catalog: BackupCatalog) -> ArchiveFetch:
        from actors.sandbox.fetch import ArchiveFetch  # imported late, as above

        return ArchiveFetch(
            uid=self._config.node.sandbox_uid,
            catalog=catalog,
            archiver=self._archiver,
            cache=self._cache,
            transfer=self._config.transfer,
            meter=self._meter,
        )

    def forget(self, options: ForgetOptions) -> ForgetResult:
        """See `SandboxCalls.forget`."""
        self._find_out_what_is_missing(options.dirs)
        with self._waking, self._tree_lock.repairing(), self._unavailable_unless("changed", outcome="unknown"):
            given_up = self._recovery.give_up(options.dirs, given_up_before=self._forgotten())
            if given_up:
                self._tell_of_giving_up([row.dir for row in given_up])
        forgotten = self._forgotten()
        return ForgetResult(forgotten=[forgotten[directory] for directory in dict.fromkeys(options.dirs)])

    def _forgotten(self) -> dict[str, RecoveredDirectory]:
        """The forgotten directories, by path, from the state document and this node's record."""
        state = self.ownership.last_known
        found = [
            public_recovery(state.recovery if state else None),
            public_recovery(recovery_in(self._restored.record)),
        ]
        rows = [row for recovery in found if recovery is not None for row in recovery.directories]
        return {row.dir: row for row in rows if row.status is DirectoryStatus.FORGOTTEN}

    def _tell_of_giving_up(self, directories: Collection[str]) -> None:
        self.ownership.report(lambda state: after_forgetting(state, self._restored.record, directories))

    def _find_out_what_is_missing(self, directories: Sequence[str]) -> None:
        """Tries to wake the sandbox, unless an earlier attempt found all of these directories missing."""
        is_held = self._restored.is_shown or self._restored.unmounted is not None
        if is_held and all(self._recovery.is_known_missing(each) for each in directories):
            return
        try:
            self.wake()
        except SandboxUnavailableError as e:
            if e.context.get("reason") != DIRECTORY_MISSING:
                raise

    def destroy(self) -> None:
        """Ends everything and removes the sandbox's files and state document; its backups stay. Repeatable.

        Raises:
            SandboxUnavailableError: a part of the sandbox is still in use; call again.
            DocumentDamagedError: a later release has written the state document; nothing was removed.
            StorageUnavailableError: the bucket does not answer; call again. The context says if the files are gone.
        """
        with self._operations.run(OperationKind.DESTROY) as progress:
            progress.point_of_no_return(Phase.WAITING)
            with self._tree_lock.repairing():
                self._is_new = False
                self.ownership.check_forgettable()
                with self._unavailable_unless("destroyed", outcome="unknown"):
                    self._claim_to_destroy()
                    self._put_down()
                    self._sweep()
                    self._remove_files()
                self._restored.forget()
                try:
                    self._delete_state()  # under the lock: an actor that finds the state but no files recovers them
                finally:
                    self._sandbox_lock.release(for_good=True)

    def _claim_to_destroy(self) -> None:
        """Takes the sandbox lock. If the disk has no room for it and nothing of the sandbox is here, goes on without
        the lock: no other process can begin anything here, either."""
        try:
            self._sandbox_lock.claim()
        except OSError as e:
            if not is_full(e) or self._home.exists():
                raise

    def _sweep(self) -> None:
        if sweep(self._home, deadline_s=_UNMOUNT_S):
            raise MountBusyError("A mount of the sandbox is still in use.")

    def _delete_state(self) -> None:
        try:
            self.ownership.forget()
        except StorageError as e:
            log.warning("state_not_deleted", sandbox=self.id, detail=str(e))
            raise StorageUnavailableError(
                "The sandbox's files are gone, but the bucket could not be told.",
                hint="Delete it again.",
                context={"outcome": "unknown"},
            ) from None

    def _remove_files(self) -> None:
        """Moves the sandbox's folder away in one step, then deletes it. So a crash leaves no half of a sandbox."""
        if not self._home.exists():
            return
        self._layout.remove(self._home)
        self._restored.release_lowers()

    # --- work

    def exec(self, command_id: str, request: ExecRequest) -> Iterator[ExecEvent]:
        """See `SandboxCalls.exec`."""
        self._wake_to_change()
        return self._unsaved.following(self._commands.run(command_id, request))

    def _look(self) -> None:
        """Notes which roots hold unsaved files, so that their loss can be reported if the node is lost."""
        state = self.ownership.last_known
        saved = {row.dir for row in (state.checkpoints if state else ())}
        saved |= {entry.dir for entry in self._restored.record.entries}
        with contextlib.suppress(NodeError, OSError, SandboxUnavailableError), self._tree_lock.shared():
            self.ownership.note_unsaved(unsaved_roots(self._tree, saved))

    def read_file(self, transfer_id: str, path: str) -> Iterator[bytes]:
        """See `SandboxCalls.read_file`."""
        self.wake()
        return self._undisturbed(self._transfers.read(transfer_id, path))

    def _undisturbed(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield from pieces
        if self._kept.is_disturbed():
            raise disturbed()

    def open_file(self, path: str, mode: int | None) -> str:
        """Begins to write a file; returns the transfer's id."""
        self._wake_to_change()
        return self._transfers.open_file(path, mode)

    def open_hydrate(self) -> str:
        """Begins to unpack a tar archive; returns the transfer's id."""
        self._wake_to_change()
        return self._transfers.open_hydrate()

    def send(self, transfer_id: str, data: bytes) -> None:
        """Hands bytes to a transfer."""
        self._transfers.send(transfer_id, data)

    def commit(self, transfer_id: str) -> None:
        """Completes an upload: makes it visible."""
        self._transfers.commit(transfer_id)
        self._unsaved.look_soon()

    def abort(self, transfer_id: str) -> None:
        """Ends a transfer and discards what is not visible yet."""
        self._transfers.abort(transfer_id)

    def persist(self, command_id: str, excludes: Sequence[str] = ()) -> Iterator[bytes]:
        """See `SandboxCalls.persist`."""
        self.wake()
        left_out = self._left_out("/workspace", excludes) if excludes else ()
        return self._transfers.persist(command_id, tar_excludes(left_out))

    def _left_out(self, directory: str, excludes: Sequence[str]) -> list[bytes]:
        """The paths that the patterns exclude. Commands are paused meanwhile, as for a backup."""
        with (
            self._unavailable_unless("paused", outcome="not_executed"),
            self._tree_lock.alone(),
            self._commands.paused(),
            translated(directory),
        ):
            try:
                return self._archiver.left_out(directory, excludes, timeout_s=self._config.backup.pause_s)
            except TreeError as e:
                raise InvalidRequestError(f"The excludes cannot be applied: {e.message}") from None

    def delete_file(self, path: str) -> None:
        """See `SandboxCalls.delete_file`."""
        self._wake_to_change()
        inside = writable_path(path)
        with self._tree_lock.shared(), translated(inside):
            self._tree.remove(inside)
        self._unsaved.look_soon()

    def list_files(self, path: str) -> list[FileEntry]:
        """See `SandboxCalls.list_files`."""
        self.wake()
        inside = writable_path(path)
        with self._tree_lock.shared(), translated(inside):
            return [
                FileEntry(
                    name=row.name,
                    kind=FileKind(row.kind),
                    size_bytes=row.size_bytes,
                    mode=row.mode,
                    modified_at=datetime.fromtimestamp(row.modified_s, UTC),
                )
                for row in self._tree.entries(inside, limit=_LISTED)
            ]

    # --- control

    def info(self) -> SandboxInfo:
        """The information about the sandbox. Does not wake it."""
        state = self.ownership.last_known
        return SandboxInfo(
            id=self.id,
            running=True,
            created_at=state.created_at if state else self._restored.record.created_at,
            last_used_at=state.last_used_at if state else None,
            epoch=state.epoch if state else 0,
            labels=state.labels if state else {},
            recovery=public_recovery(state.recovery) if state else None,
            awake_since=self._awake_since,
            restored=[entry.public() for entry in self._restored.entries],
            operation=self._operations.running,
            recent=self._operations.ended,
            commands=self._commands.count,
            limits=self._limits(),
        )

    def _limits(self) -> CommandLimits | None:
        if not self.is_awake:
            return None
        found = self._cgroup.limits()
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
        return self._commands.stop(name) or self._transfers.abort(name)

    def expect_command(self) -> None:
        """Prepares the kernel for a command that is on its way (`announce_entry`). Returns at once."""
        threading.Thread(target=announce_entry, name="announce", daemon=True).start()

    @property
    def is_awake(self) -> bool:
        """True if all of the sandbox is mounted: it was woken, and has not been closed or destroyed since."""
        return self._restored.is_whole

    @property
    def is_empty(self) -> bool:
        """True if the sandbox was destroyed and not used since."""
        return not self._is_new and not self.is_awake and not self._restored.exists

    @property
    def must_stay(self) -> bool:
        """True if the sandbox may not sleep: a transfer is open, or the bucket does not record where its files are."""
        return self._transfers.has_uploads or (self.is_awake and not self.ownership.is_recorded)

    # --- life

    def wake(self) -> None:
        """Wakes the sandbox: mounts or recovers its files, and cleans up after an earlier process that died.

        Does nothing if the sandbox is awake and its archives are undamaged.

        Raises:
            SandboxUnavailableError: it cannot wake now; nothing is lost.
        """
        if self.ownership.is_superseded:
            raise superseded()
        if self.is_awake and not self._kept.is_disturbed():
            return
        with self._waking, self._tree_lock.repairing():
            self._put_down_disturbed()
            if not self.is_awake:
                self._wake()

    def _put_down_disturbed(self) -> None:
        """Unmounts everything if an archive under a mount has changed. The next `_wake` checks the archives.

        Raises SandboxUnavailableError.
        """
        if self.is_awake and self._kept.is_disturbed():
            log.error("archive_disturbed", sandbox=self.id)
            with self._unavailable_unless("taken up", outcome="not_executed"):
                self._stop(disturbed())
                self._restored.unmount_all()

    def _look_at_archives(self) -> bool:
        """Remounts the sandbox if an archive has changed, as a call would. Returns False once nothing is mounted."""
        if not (self.is_awake and self._kept.is_in_use):
            return False
        if self._kept.is_disturbed():
            with self._waking, self._tree_lock.repairing():
                was_awake = self.is_awake
                try:
                    self._put_down_disturbed()
                    if was_awake and not self.is_awake:
                        self._wake()
                except HoldfastError as e:  # the next call tries again
                    log.error("archive_not_replaced", sandbox=self.id, error=e.code)
        return self.is_awake

    def prepare(self, found: StateRead, *, wake: bool) -> None:
        """Prepares the sandbox for a call that is on its way, and wakes it if `wake` is true. Raises as `wake`.

        Does nothing if the sandbox was woken, closed or destroyed before: that call may be over by now. `found` is the
        state that the service has just found in the bucket (`Ownership.suppose`).
        """
        with self._waking, self._tree_lock.repairing():
            if self._is_new:
                self.ownership.suppose(found)
                if wake:
                    self._wake()

    def come_back(self) -> None:
        """Wakes the sandbox after a crash of its actor, if it existed. Raises as `wake`, and StorageError."""
        with self._waking, self._tree_lock.repairing():
            if self._is_new and (self._restored.exists or self.ownership.is_known()):
                self._wake()

    def _wake(self) -> None:
        with self._unavailable_unless("taken up", outcome="not_executed", hint="Run `holdfast doctor` on the node."):
            self._sandbox_lock.claim()
            self._user_namespace.start()
            try:
                self._restored.read()
                origin = self._take_up()
            except BaseException:
                if not (self._restored.is_shown or self._restored.unmounted):  # else parts are mounted
                    self._let_go()
                raise
        self._is_new = False
        self._look()
        self._watch.begin()
        self._meter.add(WAKES, origin.value)
        if not origin.is_elsewhere:
            self.ownership.acquire_epoch_in_background()

    def _wake_to_change(self) -> None:
        self.wake()
        self._safe_in = None

    def _take_up(self) -> Origin:
        origin = self.ownership.locate(has_record=self._restored.exists)
        self._safe_in = None
        if origin.is_elsewhere:
            wanted = self._begin_recovery(origin)
            if origin is Origin.SLEEP:  # before the tree is visible: every change resets it
                self._safe_in = frozenset(row.backup_id for row in wanted)
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._cgroup.prepare()
        self._cgroup.thaw()
        actor_group.end_orphans(self._layout.cgroup)  # first: an orphan may be about to enter the sandbox's group
        self._stop(ExecStoppedError("The sandbox was taken up anew, which stopped the command."))
        self.expect_command()
        remove_tree(self._home / "spool")
        self._cache.remove_leftovers()
        self._mount_everything(unmended=self._mend())
        self._recover(begun=origin.is_elsewhere)
        recovery = self._restored.record.recovery
        if recovery is not None and recovery.given_up:
            self._safe_in = None
        self._make_home()
        return origin

    def _mount_everything(self, unmended: Mapping[str, str]) -> None:
        """Mounts what the record names. `unmended` has the directories whose archives stay damaged, with the causes."""
        try:
            self._take_up_mounts()
        except (NodeError, OSError) as e:
            if self._restored.unmounted is None:
                raise
            reason, _ = reason_of(e)
            entry, known = self._restored.unmounted, self.ownership.last_known
            error = self._recovery.unmounted_error(entry, reason, in_bucket=unmended.get(entry.dir))
            if known is None or with_unmounted(known, entry, reason).recovery != known.recovery:
                self.ownership.report(lambda state: with_unmounted(state, entry, reason))
            raise error from None

    def _mend(self) -> Mapping[str, str]:
        damaged = self._restored.damaged()
        return self._mending.mend(damaged, self._fetch(configured(self._catalog, self._config))) if damaged else {}

    def _take_up_mounts(self) -> None:
        """Mounts what the record names. If a mount fails, ends the orphans of earlier actors and tries once more."""
        try:
            self._restored.mount_all()
        except MountError:
            if not holders.end_orphans(self._layout.mounting):
                raise
            self._restored.mount_all()

    def _begin_recovery(self, origin: Origin) -> tuple[RecoveryItem, ...]:
        """Claims the epoch and records the directories to recover. Removes the sandbox's older files from this node."""
        self._put_aside()
        lost_node, state = self.ownership.acquire_epoch()
        log.warning("sandbox_taken_over", sandbox=self.id, origin=origin.value, lost_node=lost_node)
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        recovery = recovery_plan(state, lost_node)
        if recovery.lost:
            log.error("files_lost", sandbox=self.id, lost_node=lost_node, roots=list(recovery.lost))
        self._restored.begin_recovery(state.created_at, recovery)
        return recovery.directories

    def _put_aside(self) -> None:
        """Removes the files that this node has of a sandbox whose newer files are elsewhere."""
        self._put_down()
        self._sweep()
        self._remove_files()
        self._restored.forget()

    def _recover(self, *, begun: bool) -> None:
        """Recovers the missing directories from their checkpoints. After an interruption, the next wake continues.

        `begun` marks a recovery that has just begun. It is reported even if there is nothing to recover.

        Raises:
            SandboxUnavailableError: a directory is still missing.
        """
        plan = self._restored.record.recovery
        if plan is None or not (begun or plan.missing):
            known = self.ownership.last_known
            if known is not None and known.recovery is not None and missing_in(known.recovery):
                self.ownership.report(lambda state: after_recovery(state, self._restored.record))
            return
        catalog = configured(self._catalog, self._config)
        try:
            self._recovery.bring_back(lambda: self._restoration(catalog, self._tree_lock.repairing))
        except SandboxUnavailableError as e:
            if e.context.get("reason") == DIRECTORY_MISSING:
                self._tell_of_what_is_missing()
            raise
        self.ownership.report(lambda state: after_recovery(state, self._restored.record))
        settled = self._restored.record.recovery
        log.info(
            "sandbox_recovered",
            sandbox=self.id,
            lost_node=plan.lost_node,
            directories={row.dir: row.error or row.backup_id for row in settled.directories} if settled else {},
        )

    def _tell_of_what_is_missing(self) -> None:
        """Writes the missing directories to the state document, so that they can be read without waking the sandbox."""
        known = self.ownership.last_known
        told = known.recovery if known else None
        if recovery_in(self._restored.record, told) != told:
            self.ownership.report(lambda state: after_recovery(state, self._restored.record))

    def _unavailable_unless(self, done: str, *, outcome: str, hint: str = _AGAIN) -> AbstractContextManager[None]:
        return unavailable_unless(self.id, done, outcome=outcome, hint=hint)

    def close(self) -> None:
        """Ends everything that runs and unmounts everything; files and layers stay. The next call wakes the sandbox.

        Raises NodeError.
        """
        with self._tree_lock.repairing():
            self._is_new = False
            self._put_down()
            self._let_go()

    def _let_go(self) -> None:
        self.ownership.close()
        self._user_namespace.close()
        with contextlib.suppress(OSError):
            os.utime(self._home)  # the time of the last use: the order in which a drain moves sleeping sandboxes
        self._sandbox_lock.release()

    def _put_down(self) -> None:
        self._stop(ExecStoppedError("The end of the sandbox stopped the command."))
        self._restored.unmount_all()
        self._cgroup.remove()
        self._user_namespace.close()

    def back_up_for_sleep(self) -> list[Checkpoint]:
        """Backs up everything in the sandbox, so that `sleep` can free the node's disk. Changes nothing else.

        Makes no backups if the sandbox has not changed since it woke from such backups; returns those.

        Raises:
            HoldfastError: a directory could not be backed up.
        """
        configured(self._catalog, self._config)
        self.wake()
        return self._backed_up(self._paused)

    def _backed_up(self, paused: Callable[[], AbstractContextManager[None]]) -> list[Checkpoint]:
        """Backs up everything in the sandbox; returns the checkpoints. `paused` pauses what could change the tree."""
        catalog = configured(self._catalog, self._config)
        if self._safe_in is not None and (kept := self._checkpoints(self._safe_in)) is not None:
            return kept
        made = set()
        for top in WRITABLE_ROOTS:
            if self._holds_anything(top):
                with self._operations.run(OperationKind.BACKUP, top) as progress:
                    options = BackupOptions(dir=top, name="asleep", ttl=_SLEEP_TTL_S)
                    made.add(self._creation(catalog, of_sleep=True, paused=paused).create(options, progress).id)
        recorded = self._checkpoints(made)
        if recorded is None:
            raise StorageUnavailableError(
                "The bucket has not taken note of the backups.", context={"outcome": "not_executed"}
            )
        return recorded

    def _checkpoints(self, backup_ids: Collection[str]) -> list[Checkpoint] | None:
        """The checkpoints of these backups; None if one of the backups is no checkpoint."""
        state = self.ownership.state
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

    def sleep(self, checkpoints: Sequence[Checkpoint] | None = None) -> None:
        """Ends everything that runs and unmounts everything. The next call wakes the sandbox with all its files.

        With `checkpoints`, those from `back_up_for_sleep`, the files are removed from this node: it can wake on
        any node.

        Raises:
            NodeError: a mount is in use; the next call wakes the sandbox with all its files.
            StorageUnavailableError: the sleep could not be written to the bucket; likewise.
            SandboxUnavailableError: another actor has taken over, or the sandbox is not awake; nothing was removed.
        """
        if checkpoints is None:
            self._sleep_here()
            return
        if not self.is_awake:
            raise SandboxUnavailableError(
                "The sandbox is not awake, so it is not known whether all of it is backed up.",
                context={"outcome": "not_executed"},
            )
        with self._tree_lock.repairing():
            self._put_down()
            self._sweep()
            try:
                self.ownership.sleep(checkpoints)
            except StorageError as e:
                log.warning("sleep_not_written", sandbox=self.id, detail=str(e))
                raise StorageUnavailableError(
                    "The bucket could not be told that the sandbox sleeps.", context={"outcome": "unknown"}
                ) from None
            self._remove_files()
            self._restored.forget()
            self._sandbox_lock.release(for_good=True)
        self.ownership.clear_sleep()

    def hand_over(self) -> None:
        """Moves the sandbox into the bucket, even if commands run, so that it can wake on another node. Repeatable.

        Running commands are paused until everything is backed up, and then ended: nothing that they have written is
        lost. Does nothing if the sandbox has no files on this node, or newer ones elsewhere.

        Raises:
            HoldfastError: the sandbox is still on this node, and the next call finds it with all its files.
        """
        if not self.is_awake:
            with self._unavailable_unless("handed over", outcome="not_executed"):
                if not self._restored.exists or not self.ownership.may_be_here():
                    return
            self.wake()
        with self._unavailable_unless("handed over", outcome="not_executed"):
            self.ownership.check()  # before the pause: no command is paused for a bucket that does not answer
        with self._tree_lock.alone(), self._unavailable_unless("handed over", outcome="not_executed"):
            with self._commands.paused():
                checkpoints = self._backed_up(self._undamaged)
                self._stop(_moved())
            self.sleep(checkpoints)

    def _sleep_here(self) -> None:
        if self.is_awake and not self.ownership.is_recorded:
            self.ownership.report(lambda state: state)
        with self._tree_lock.repairing():
            self._is_new = False
            was_awake = self.is_awake
            if was_awake and not self.ownership.is_recorded:
                raise StorageUnavailableError(
                    "The bucket does not know yet where the sandbox's files are.", context={"outcome": "not_executed"}
                )
            self._put_down()
            try:
                if was_awake:
                    self.ownership.report(lambda state: happened(state, "slept"))
                    self.ownership.clear_sleep()
            finally:
                self._let_go()

    def _make_home(self) -> None:
        # The sandbox may have put something else there, or filled the disk. It can wake all the same.
        with contextlib.suppress(NodeError, OSError):
            self._tree.make_directory(HOME)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        with self._tree_lock.alone(), self._commands.paused(), self._undamaged():
            yield

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        self._check_archives()
        yield
        self._check_archives()

    def _check_archives(self) -> None:
        """Raises BackupCreateError if an archive under a restored directory has changed: a backup could be wrong."""
        if self._kept.is_disturbed():
            raise BackupCreateError(
                "The backup could not be created: the archive under a restored directory was damaged on the node.",
                hint="Try again; it is fetched and mounted anew.",
                context={"reason": "DAMAGED_COPY"},
            )

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        with self._tree_lock.alone():
            self._stop(ExecStoppedError("A restore stopped the command."))
            yield

    def _stop(self, error: HoldfastError) -> None:
        self._commands.stop_all(error)
        self._transfers.abort_all(error if isinstance(error, SandboxUnavailableError) else None)

    def _revive(self, layer: Layer) -> None:
        """Mounts a layer again after its daemon died, with the same upper. Stops all commands and transfers first."""
        lost = MountLostError("A file system daemon under the directory died; it has been mounted anew.")
        with self._tree_lock.repairing():
            try:
                self._restored.revive(layer, lambda: self._stop(lost))
                log.warning("layer_revived", sandbox=self.id, layer=layer.id)
            except (NodeError, OSError) as e:  # the tree is not whole now, so the next call mounts it anew
                log.error("layer_lost", sandbox=self.id, layer=layer.id, error=type(e).__name__)


def _moved() -> SandboxUnavailableError:
    """The error of a call that a hand-over has ended."""
    return SandboxUnavailableError(
        "The sandbox's node is being drained, which ended the call; what it had written until then was kept.",
        hint="Look at the sandbox's state before you repeat the call.",
        context={"outcome": "unknown", "reason": DRAINING},
    )
