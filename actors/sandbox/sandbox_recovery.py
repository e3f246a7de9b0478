"""Drives the recovery of a whole sandbox: plans it, brings the directories back, and tells the state document."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from actors.errors import SandboxUnavailableError
from actors.faults import reason_of
from actors.logs import log
from actors.models import DirectoryStatus, RecoveredDirectory, RestoreOptions
from actors.sandbox.protocols import Protocols
from actors.sandbox.recovery import DIRECTORY_MISSING, DirectoryRecovery, recovery_plan
from actors.sandbox.restored_directories import RestoredDirectories
from actors.state.api_views import public_recovery
from actors.state.changes import after_forgetting, after_recovery, missing_in, recovery_in, with_unmounted
from actors.state.location import Origin
from actors.state.node_record import Entry, RecoveryItem
from actors.state.ownership import Ownership


class SandboxRecovery:
    """The recovery of one sandbox, in its record on the node and in its state. The caller holds the tree lock."""

    def __init__(
        self,
        sandbox: str,
        restored: RestoredDirectories,
        ownership: Ownership,
        directories: DirectoryRecovery,
        protocols: Protocols,
    ) -> None:
        self._sandbox = sandbox
        self._restored = restored
        self._ownership = ownership
        self._directories = directories
        self._protocols = protocols

    def begin(self, origin: Origin) -> Sequence[RecoveryItem]:
        """Claims the epoch, and records and returns the directories to recover. The node has no files of the sandbox.

        Raises StorageError, OSError.
        """
        lost_node, state = self._ownership.acquire_epoch()
        log.warning("sandbox_taken_over", sandbox=self._sandbox, origin=origin.value, lost_node=lost_node)
        recovery = recovery_plan(state, lost_node)
        if recovery.lost:
            log.error("files_lost", sandbox=self._sandbox, lost_node=lost_node, roots=list(recovery.lost))
        self._restored.begin_recovery(state.created_at, recovery)
        return recovery.directories

    def go_on(self, *, begun: bool) -> None:
        """Recovers the missing directories from their checkpoints. After an interruption, the next wake continues.

        `begun` marks a recovery that has just begun. It is reported even if there is nothing to recover.

        Raises:
            SandboxUnavailableError: a directory is still missing.
        """
        plan = self._restored.record.recovery
        if plan is None or not (begun or plan.missing):
            known = self._ownership.last_known
            if known is not None and known.recovery is not None and missing_in(known.recovery):
                self._report()
            return
        restoration = self._protocols.restoration(is_held=True)
        try:
            self._directories.bring_back(restoration)
        except SandboxUnavailableError as e:
            if e.context.get("reason") == DIRECTORY_MISSING:
                self._tell_of_what_is_missing()
            raise
        self._report()
        settled = self._restored.record.recovery
        log.info(
            "sandbox_recovered",
            sandbox=self._sandbox,
            lost_node=plan.lost_node,
            directories={row.dir: row.error or row.backup_id for row in settled.directories} if settled else {},
        )

    def is_known_missing(self, directory: str) -> bool:
        """See `DirectoryRecovery.is_known_missing`."""
        return self._directories.is_known_missing(directory)

    def settled_by(self, options: RestoreOptions) -> dict[str, str | None]:
        """See `DirectoryRecovery.settled_by`."""
        return self._directories.settled_by(options)

    def unmounted_error(self, entry: Entry, error: Exception, unmended: Mapping[str, str]) -> SandboxUnavailableError:
        """Tells the state of an overlay that could not be mounted; returns the error of every call until it can be.

        `unmended` has the directories whose archives stay damaged, with the causes.
        """
        reason, _ = reason_of(error)
        unavailable = self._directories.unmounted_error(entry, reason, in_bucket=unmended.get(entry.dir))
        known = self._ownership.last_known
        if known is None or with_unmounted(known, entry, reason).recovery != known.recovery:
            self._ownership.report(lambda state: with_unmounted(state, entry, reason))
        return unavailable

    def forget(self, directories: Sequence[str]) -> list[RecoveredDirectory]:
        """Forgets missing directories, all or none; returns them, with those among them that were forgotten before.

        Raises:
            InvalidRequestError: one of them is not missing; nothing was changed.
            OSError: the record could not be written; nothing was changed.
        """
        before = self._forgotten()
        wanted = list(dict.fromkeys(self._as_recorded(directory, before) for directory in directories))
        rows = self._directories.forget(wanted, forgotten_before=before)
        if rows:
            self.report_forgotten([row.dir for row in rows])
        forgotten = self._forgotten()
        return [forgotten[directory] for directory in wanted]

    def _as_recorded(self, directory: str, forgotten: Collection[str]) -> str:
        """The recorded path of a missing or forgotten directory, whichever symbolic link leads there."""
        if directory in forgotten or self.is_known_missing(directory):
            return directory
        return self._restored.real_path(directory)

    def report_forgotten(self, directories: Collection[str]) -> None:
        """Tells the state of directories that were forgotten, or replaced by another restore."""
        self._ownership.report(lambda state: after_forgetting(state, self._restored.record, directories))

    def _forgotten(self) -> dict[str, RecoveredDirectory]:
        """The forgotten directories, by path, from the state document and this node's record."""
        state = self._ownership.last_known
        found = [
            public_recovery(state.recovery if state else None),
            public_recovery(recovery_in(self._restored.record)),
        ]
        rows = [row for recovery in found if recovery is not None for row in recovery.directories]
        return {row.dir: row for row in rows if row.status is DirectoryStatus.FORGOTTEN}

    def _tell_of_what_is_missing(self) -> None:
        """Writes the missing directories to the state document, so that they can be read without waking the sandbox."""
        known = self._ownership.last_known
        told = known.recovery if known else None
        if recovery_in(self._restored.record, told) != told:
            self._report()

    def _report(self) -> None:
        self._ownership.report(lambda state: after_recovery(state, self._restored.record))
