"""The ownership of a sandbox by its actor: locate the files, then claim the epoch (a fencing token).

The actor claims the epoch in the background, soon after the sandbox is awake. Commands and files need no epoch. Durable
changes (a backup, a restore, a recovery) wait for it. A replaced actor notices that at its next write, and ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from actors.errors import StorageUnavailableError, SupersededError
from actors.faults import damaged
from actors.logs import log
from actors.state import location
from actors.state.changes import (
    asleep_in_bucket,
    begun_takeover,
    checkpoint_in,
    taken_over,
    taken_up,
    without_pending,
    without_sleep_backups,
)
from actors.state.document import (
    Change,
    DurableState,
    NodeRef,
    StateRead,
    with_backup,
    with_checkpoint,
)
from actors.state.location import Origin
from actors.state.node_record import Record
from actors.state.patience import MOMENTS_S, answered_in_moments, within_moments
from actors.state.remaking import remade_state
from storage.catalog import BackupCatalog, StoredState
from storage.errors import CorruptMetadataError, DocumentError, StorageError, StoreUnavailableError
from storage.metadata import BackupRecord, Checkpoint, SandboxState

_SOON_S = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class Ownership:
    """One actor's ownership of one sandbox. Without a bucket there is nothing to claim, and it does nothing."""

    def __init__(
        self,
        catalog: BackupCatalog | None,
        tenant: str,
        sandbox: str,
        place: NodeRef,
        *,
        record: Callable[[], Record],
        is_lost: Callable[[str, str | None], bool],
    ) -> None:
        """`record` returns the node's record; `is_lost` tells if a node (identity, name in the cluster) is gone."""
        self._tenant = tenant
        self._sandbox = sandbox
        self._place = place
        self._record = record
        self._is_lost = is_lost
        self._catalog = catalog
        self._durable = DurableState(catalog, tenant, sandbox, place) if catalog is not None else None
        self._taking = threading.Lock()
        self._found: StateRead | None = None
        """The state that `locate` read or `suppose` was given, until an epoch is claimed with it."""
        self._located: SandboxState | None = None
        self._inherited: list[str] = []
        """Ids of backups that are not settled yet: begun by earlier actors, or by failed calls of this one."""
        self._is_open = False
        """True from `locate` until the sandbox sleeps, or is closed or destroyed."""
        self._unsaved: list[str] | None = None
        """The writable roots with content that is in no checkpoint, as of this actor's last look; None before it."""
        self._noting = threading.Lock()
        self._is_telling_of_sleep = False
        """True while a sleep is being written, even after `sleep` timed out. The writing thread holds `_taking`."""

    @property
    def state(self) -> SandboxState | None:
        """The durable state; None before this actor has an epoch."""
        return self._durable.state if self._durable is not None else None

    @property
    def last_known(self) -> SandboxState | None:
        """The durable state; before this actor has an epoch, the state that `locate` found."""
        return self.state or self._located

    @property
    def is_recorded(self) -> bool:
        """True if the bucket says for certain that the files are here. Nothing else tells others where they are."""
        return self._durable is None or (self._durable.is_here and not self._is_telling_of_sleep)

    @property
    def is_superseded(self) -> bool:
        """True if another actor has taken over."""
        return self._durable is not None and self._durable.is_superseded

    def suppose(self, found: StateRead) -> None:
        """Gives `locate` a state that was just read, so that it need not ask the bucket. Ignored after `locate`."""
        if not self._is_open and self.state is None:
            self._found = found

    def is_known(self) -> bool:
        """Tells whether the bucket says that an actor ever had the sandbox. Raises StorageError."""
        found = self._durable.find() if self._durable is not None else None
        return found is not None and location.was_taken_up(found.state)

    def may_be_here(self) -> bool:
        """Tells whether this node's files of the sandbox may be its newest. Raises StorageError."""
        found = self._durable.find() if self._durable is not None else None
        state = found.state if found is not None else None
        return state is None or not location.was_taken_up(state) or state.node == self._place.identity

    def locate(self, *, has_record: bool) -> Origin:
        """Locates the sandbox's content. `has_record` is true if this node has a record of the sandbox.

        Raises:
            FilesElsewhereError: it is elsewhere.
            SandboxUnavailableError: that cannot be known now.
            SupersededError: another actor has taken over.
            DocumentDamagedError: the state cannot be used, and this node has no record; or a later release wrote it.
        """
        if self.is_superseded:
            raise SupersededError
        if self._durable is None:
            return Origin.HERE if has_record else Origin.AFRESH
        origin = self._origin(self._durable, has_record=has_record)
        self._is_open = True
        return origin

    def _origin(self, durable: DurableState, *, has_record: bool) -> Origin:
        found, self._found = self._found, None
        state = durable.state
        if state is None:
            answer = found or answered_in_moments(lambda: _found_or_damaged(durable))
            if isinstance(answer, DocumentError):
                return location.damaged(answer, has_record=has_record)
            self._found = found = answer
            if found is None:
                return location.unknown(has_record=has_record)
            state = found.stored.state if found.stored else None
        self._located = state
        return location.origin(state, has_record=has_record, place=self._place, is_lost=self._is_lost)

    def acquire_epoch(self) -> tuple[str | None, SandboxState]:
        """Claims the epoch of a sandbox whose files are not here, and settles the backups that earlier actors began.

        Repeatable after an interruption: an event in the state still names the node that had the files.

        Returns:
            The node that lost the files (None if they were on no node), and the state.

        Raises:
            SupersededError: another actor claimed an epoch first.
            StorageError: the bucket did not answer, or not every backup is settled.
        """
        durable = self._durable
        assert durable is not None
        with self._taking:
            self._acquire_epoch(
                durable, self._last_found(durable), lambda state: taken_over(state, node=self._place.identity)
            )
            state = durable.state
            begun = begun_takeover(state) if state is not None else None
            assert state is not None and begun is not None
            return begun.node, state

    def _last_found(self, durable: DurableState) -> StoredState | None:
        """Returns the state that `locate` found, once; later calls read it from the bucket. Raises StorageError."""
        found, self._found = self._found or StateRead(durable.find()), None
        return found.stored

    def _last_found_or_remade(self, durable: DurableState) -> StoredState | None:
        """Like `_last_found`, if the files are here. A damaged state is replaced by one from the node's record."""
        try:
            return self._last_found(durable)
        except CorruptMetadataError as e:
            log.error("state_damaged", sandbox=self._sandbox, detail=str(e))
            assert self._catalog is not None
            state = remade_state(self._catalog, self._tenant, self._sandbox, self._place, self._record())
            return durable.replace_damaged(state)

    def _acquire_epoch(self, durable: DurableState, found: StoredState | None, change: Change) -> None:
        taken = durable.acquire_epoch(found, change)
        self._inherited = list(taken.pending)
        self._settle(durable)

    def acquire_epoch_in_background(self) -> None:
        """Claims the epoch of a sandbox whose files are here, in the background; writes what the bucket has missed.

        Waits for `_SOON_S` first, to leave the processor to the call that woke the sandbox.
        """
        durable = self._durable
        if durable is not None and (durable.is_behind or not self.is_recorded):
            threading.Thread(target=self._acquire_epoch_quietly, name="epoch", daemon=True).start()

    def _acquire_epoch_quietly(self) -> None:
        time.sleep(_SOON_S)
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                durable = self._own()
                if durable.is_behind or not self.is_recorded:
                    self.change(lambda state: state)
                return
            except SupersededError:  # another actor has it, or it was closed meanwhile
                if self.is_superseded:
                    log.warning("epoch_not_taken", sandbox=self._sandbox, error="superseded")
                return
            except Exception as e:  # the bucket is down, or answers nonsense
                log.warning("epoch_not_taken", sandbox=self._sandbox, error=type(e).__name__)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _own(self) -> DurableState:
        """Returns the state under this actor's epoch; claims the epoch if needed.

        Raises SupersededError, StorageError.
        """
        durable = self._durable
        assert durable is not None
        with self._taking:
            self._claim(durable)
            return durable

    def _claim(self, durable: DurableState) -> None:
        """Claims an epoch if this actor has none, and settles inherited backups. The caller holds `_taking`."""
        if durable.is_superseded or not self._is_open:
            raise SupersededError
        if durable.state is None or durable.state.node is None:
            found = self._last_found_or_remade(durable)
            if not location.may_be_here(found.state if found else None, self._place):
                durable.give_way()
            self._acquire_epoch(durable, found, self._taken_up)
        self._settle(durable)

    def _taken_up(self, state: SandboxState) -> SandboxState:
        return taken_up(state, self._record(), node=self._place.identity, unsaved=self._unsaved)

    def _settle(self, durable: DurableState) -> None:
        """Finds out what became of the inherited backups, and writes that. Raises StorageError: call again.

        Nothing else is written before: a backup that an earlier actor committed is older than all later changes.
        """
        assert self._catalog is not None
        settled: dict[str, BackupRecord | None] = {}
        for backup_id in self._inherited:
            try:
                record = self._catalog.settle(backup_id)
            except DocumentError as e:  # nobody can restore it
                log.warning("backup_not_settled", sandbox=self._sandbox, backup=backup_id, detail=str(e))
                record = None
            if record is not None and (record.owner, record.sandbox) != (self._tenant, self._sandbox):
                log.error("pending_backup_is_anothers", sandbox=self._sandbox, backup=backup_id)
                record = None
            settled[backup_id] = record
        if not settled:
            return

        def change(state: SandboxState) -> SandboxState:
            for backup_id, record in settled.items():
                if record is None:
                    state = without_pending(state, backup_id)
                else:
                    state = with_backup(without_pending(state, backup_id), record)
                    for entry in self._record().entries:
                        if entry.restored_at > record.created_at:  # restored after this backup was made
                            state = with_checkpoint(state, checkpoint_in(entry))
            return state

        self._inherited = []
        durable.change(change)

    # --- what an actor that has the sandbox writes

    def leave_behind(self, backup_id: str) -> None:
        """Notes a failed backup of this actor that could not be removed from the bucket. It is settled later."""
        with self._taking:
            self._inherited.append(backup_id)

    def change(self, change: Change, *, keep: bool = True) -> None:
        """Changes the state; claims the epoch if needed. Raises SupersededError, StorageError.

        A change that could not be written is written with the next one, unless `keep` is False. Without an epoch it is
        dropped: the claim reads from the node's record what was restored.
        """
        durable = self._durable
        if durable is None:
            return
        try:
            self._own()
        except StorageError:  # something has to be settled first
            if keep:
                durable.intend(change)
            raise
        durable.change(change, keep=keep)

    def relabel(self) -> None:
        """Adopts labels that others wrote into the state. Waits `MOMENTS_S` at most for the bucket."""
        durable = self._durable
        if durable is None or durable.state is None:
            return

        def act() -> None:
            try:
                durable.check()
            except (StorageError, SupersededError) as e:  # the next write adopts them, if there is one
                log.warning("labels_not_read", sandbox=self._sandbox, error=type(e).__name__)

        within_moments(act)

    def note_unsaved(self, roots: Sequence[str]) -> None:
        """Notes the writable roots with content that is in no checkpoint, and writes changes to the bucket.

        The write happens in the background, and nobody waits for it. After a loss, the recovery names these roots.
        """
        self._unsaved = list(roots)
        if self._is_note_behind and self._noting.acquire(blocking=False):
            threading.Thread(target=self._note, name="note", daemon=True).start()

    @property
    def _is_note_behind(self) -> bool:
        durable, state = self._durable, self.state
        if durable is None or state is None or state.node is None or not self._is_open:  # the claim writes it
            return False
        return state.unsaved != self._unsaved or durable.is_behind

    def _note(self) -> None:
        pause_s = _FIRST_PAUSE_S
        try:
            while self._is_note_behind:
                try:
                    self.change(lambda state: state.model_copy(update={"unsaved": self._unsaved}))
                except StorageError as e:
                    log.warning("unsaved_roots_not_noted", sandbox=self._sandbox, error=type(e).__name__)
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        except SupersededError:  # it was closed meanwhile, or another actor has it
            return
        finally:
            self._noting.release()
        if self._unsaved is not None:  # a look meanwhile may have found `_noting` held
            self.note_unsaved(self._unsaved)

    def told(self, at: datetime) -> None:
        """Notes that a caller was surely informed of the recovery of that instant: no other caller has to be."""

        def change(state: SandboxState) -> SandboxState:
            recovery = state.recovery
            if recovery is None or recovery.at != at or recovery.told_at is not None:
                return state
            return state.model_copy(update={"recovery": recovery.model_copy(update={"told_at": datetime.now(UTC)})})

        self.report(change)

    def check(self) -> None:
        """Checks that this actor still owns the sandbox. Raises SupersededError if not; StorageError."""
        if self._durable is not None:
            self._own().check()

    def report(self, change: Change) -> None:
        """Changes the state like `change`, but waits `MOMENTS_S` at most, and lets the bucket lag behind.

        Raises SupersededError if another actor has taken over, and for nothing else.
        """

        def act() -> None:
            try:
                self.change(change)
            except StorageError as e:
                log.warning("state_not_written", sandbox=self._sandbox, detail=str(e))
            except SupersededError:  # raised below
                log.warning("superseded", sandbox=self._sandbox)

        if self._durable is not None and self._is_open:
            within_moments(act)
            if self._durable.is_superseded:
                raise SupersededError

    def sleep(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Writes that the files are in these checkpoints only. Raises SupersededError, StorageError.

        After an error the files are still here, and the next wake on this node writes that to the bucket. `sleep` waits
        `MOMENTS_S` at most, as the sandbox serves nobody meanwhile. No epoch is claimed until the pending write ends.
        """
        durable = self._durable
        if durable is None:
            return
        assert self._catalog is not None
        no_answer = StoreUnavailableError("sleep", bucket=self._catalog.store.bucket, detail="no answer in time")
        if self._inherited or not self.is_recorded:
            self.report(lambda state: state)
        slept_at = datetime.now(UTC)
        if not self._taking.acquire(timeout=MOMENTS_S):
            raise no_answer
        if not self._is_open or self._inherited or not durable.is_here:
            self._taking.release()
            raise no_answer if self._is_open else SupersededError()
        self._is_open = False
        self._is_telling_of_sleep = True
        outcome: list[Exception | None] = []

        def tell() -> None:
            try:
                durable.change(lambda state: asleep_in_bucket(state, checkpoints, slept_at), keep=False)
                outcome.append(None)
            except (StorageError, SupersededError) as e:
                outcome.append(e)
            finally:
                self._is_telling_of_sleep = False
                self._taking.release()

        within_moments(tell)
        error = outcome[0] if outcome else no_answer
        if error is not None:
            raise error

    def close(self) -> None:
        """Ends the claim: no epoch is claimed and nothing is written until the next `locate`.

        Waits `MOMENTS_S` at most for a claim under way: the next actor would mistake a late epoch for a competitor's.
        """
        is_ours = self._taking.acquire(timeout=MOMENTS_S)
        self._is_open = False
        if is_ours:
            self._taking.release()

    def clear_sleep(self) -> None:
        """Deletes backups that were made for a sleep, and that the sandbox is not recovered from any more."""
        durable = self._durable
        if durable is None or durable.state is None:
            return
        recovery = durable.state.recovery
        lacking = {row.backup_id for row in recovery.directories if row.error} if recovery else set[str]()
        needed = {row.backup_id for row in durable.state.checkpoints} | set(durable.state.pending) | lacking
        unneeded = [backup_id for backup_id in durable.state.sleep_backups if backup_id not in needed]
        if not unneeded:
            return

        def act() -> None:
            try:
                durable.change(lambda state: state)  # now the bucket's checkpoints name none, and nobody replaced us
                self._delete(unneeded)
                durable.change(lambda state: without_sleep_backups(state, unneeded))
            except (StorageError, SupersededError) as e:  # the state still lists them: deleted next time
                log.warning("old_sleep_not_deleted", sandbox=self._sandbox, detail=str(e))

        within_moments(act)

    def check_forgettable(self) -> None:
        """Checks that the state can be deleted, before anything else of the sandbox is.

        Raises:
            SupersededError: another actor has taken over.
            DocumentDamagedError: a later release has written the state.
            StorageUnavailableError: the bucket does not answer as it should.
        """
        if self._durable is None:
            return
        try:
            self._durable.check_forgettable()
        except DocumentError as e:
            raise damaged(e) from None
        except StorageError as e:
            log.warning("state_not_read", sandbox=self._sandbox, detail=str(e))
            raise StorageUnavailableError(
                "The bucket does not answer, so the sandbox could not be deleted.",
                hint="Delete it again.",
                context={"outcome": "not_executed"},
            ) from None

    def forget(self) -> None:
        """Deletes the state, and before it the backups that were made for a sleep. The user's backups stay.

        If the state is damaged, all backups stay. A sandbox of that name can restore those for a sleep, too.

        Raises:
            SupersededError: another actor has taken over; nothing was done.
            StorageError: call again.
        """
        if self._durable is None:
            return
        with self._taking:
            self._is_open, self._found, self._inherited = False, None, []
            self._durable.forget(lambda state: self._delete(self._sleep_backups(state)))

    def _sleep_backups(self, state: SandboxState | None) -> Sequence[str]:
        """The backups that were made for a sleep. Empty if the state is damaged: the files may be in them alone."""
        if state is None:
            log.warning("sleep_backups_kept", sandbox=self._sandbox)
            return ()
        return state.sleep_backups

    def _delete(self, backup_ids: Sequence[str]) -> None:
        assert self._catalog is not None
        for backup_id in backup_ids:
            try:
                self._catalog.delete_of_sleep(self._tenant, self._sandbox, backup_id)
            except DocumentError as e:  # it stays, for a person; `holdfast gc` names it
                log.warning("sleep_not_deleted", sandbox=self._sandbox, detail=str(e))


def _found_or_damaged(durable: DurableState) -> StateRead | DocumentError:
    """Returns the state in the bucket, or the error of a document that cannot be used. Raises StorageError."""
    try:
        return StateRead(durable.find())
    except DocumentError as e:
        return e
