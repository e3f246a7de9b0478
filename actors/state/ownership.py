"""The ownership of a sandbox by its actor: locate the files, then claim the epoch (a fencing token).

The actor claims the epoch in the background, soon after the sandbox is awake. Commands and files need no epoch. Durable
changes (a backup, a restore, a recovery) wait for it. A replaced actor notices that at its next write, and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from actors.errors import StorageUnavailableError, SupersededError
from actors.faults import damaged
from actors.logs import log
from actors.state import location
from actors.state.catching_up import CatchingUp
from actors.state.changes import after_acknowledgement, asleep_in_bucket, begun_takeover, taken_over, taken_up
from actors.state.document import Change, DurableState, NodeRef, StateRead
from actors.state.lifecycle import Life, LifeCycle
from actors.state.location import Origin
from actors.state.node_record import Record
from actors.state.patience import answered_in_moments
from actors.state.remaking import remade_state
from actors.state.sleep_cleanup import SleepCleanup
from actors.state.unsettled import UnsettledBackups
from storage.catalog import BackupCatalog
from storage.errors import CorruptMetadataError, DocumentError, StorageError, StoreUnavailableError
from storage.metadata import Checkpoint, SandboxState
from storage.sandbox_documents import StoredState
from storage.time_limit import within_moments

_SOON_S = 0.2
_LATER_S = 1.0


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
        self.life = LifeCycle()
        """The sandbox's life in this actor. Everything but waking it moves it here; the sandbox itself wakes."""
        self._durable: DurableState | None = None
        self._sleep_cleanup: SleepCleanup | None = None
        self._unsettled: UnsettledBackups | None = None
        if catalog is not None:
            self._durable = DurableState(catalog.sandboxes, tenant, sandbox, place, self.life)
            self._sleep_cleanup = SleepCleanup(catalog, tenant, sandbox)
            self._unsettled = UnsettledBackups(catalog, tenant, sandbox, record)
        self._found: StateRead | None = None
        """The state that `locate` read or `suppose` was given, until an epoch is claimed with it."""
        self._located: SandboxState | None = None
        self._unsaved: list[str] | None = None
        """The writable roots with content that is in no checkpoint, as of this actor's last look; None before it."""
        self._catching_up = CatchingUp(sandbox, self._lacks, lambda: self.change(self._with_unsaved))

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
        return self._durable is None or self._durable.is_here

    @property
    def is_superseded(self) -> bool:
        """True if another actor has taken over."""
        return self.life.state is Life.SUPERSEDED

    def suppose(self, found: StateRead) -> None:
        """Gives `locate` a state that was just read, so that it need not ask the bucket. Ignored after `locate`."""
        if not self.life.may_write and self.state is None:
            self._found = found

    def is_known(self) -> bool:
        """Tells whether the bucket says that an actor ever had the sandbox. Raises StorageError."""
        found = self._durable.find() if self._durable is not None else None
        return found is not None and location.was_taken_up(found.state)

    def may_be_here(self) -> bool:
        """Tells whether this node's files of the sandbox may be its newest. Raises StorageError."""
        found = self._durable.find() if self._durable is not None else None
        return found is None or not location.was_taken_up(found.state) or found.state.node == self._place.identity

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
            origin = Origin.HERE if has_record else Origin.AFRESH
        else:
            origin = self._origin(self._durable, has_record=has_record)
        if not origin.is_elsewhere:
            self.life.move(Life.WAKING)
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
        with durable.turn():
            found, node = self._last_found(durable), self._place.identity
            self._acquire_epoch(durable, found, lambda state: taken_over(state, node=node))
            state = durable.state
            begun = begun_takeover(state) if state is not None else None
            assert state is not None and begun is not None
            self.life.move(Life.RECOVERING)
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

    def _acquire_epoch(self, durable: DurableState, found: StoredState | None, change: Change) -> SandboxState:
        """Claims an epoch and settles inherited backups; returns the state that was claimed with."""
        taken = durable.acquire_epoch(found, change)
        assert self._unsettled is not None
        self._unsettled.inherit(taken.pending)
        self._settle(durable)
        return taken

    def acquire_epoch_in_background(self) -> None:
        """Claims the epoch of a sandbox whose files are here, in the background; writes what the bucket has missed.

        Waits for `_SOON_S` first, to leave the processor to the call that woke the sandbox.
        """
        if self._lacks():
            self._catching_up.begin(after_s=_SOON_S)

    def _lacks(self) -> bool:
        """True if the bucket does not have everything that it should say of a sandbox that is here."""
        durable, state = self._durable, self.state
        if durable is None or not self.life.may_write:
            return False
        return durable.is_behind or state is None or not durable.is_here or self._with_unsaved(state) is not state

    def _with_unsaved(self, state: SandboxState) -> SandboxState:
        """The state with what this actor knows of unsaved roots; the same one if it says that already."""
        is_said = self._unsaved is None or state.unsaved == self._unsaved
        return state if is_said else state.model_copy(update={"unsaved": self._unsaved})

    def _claim(self, durable: DurableState, change: Change | None = None) -> bool:
        """Claims an epoch if this actor has none, and settles inherited backups. The caller has the state's turn.

        The claim's write makes `change`, too, unless backups have to be settled before. Returns True if it has made it.

        Raises SupersededError, StorageError.
        """
        if not self.life.may_write:
            raise SupersededError
        if durable.state is not None and durable.state.node is not None:
            self._settle(durable)
            return False
        found = self._last_found_or_remade(durable)
        if not location.may_be_here(found.state if found else None, self._place):
            durable.give_way()
        with_it = None if self._unsettled else change

        def claimed(state: SandboxState) -> SandboxState:
            state = taken_up(state, self._record(), node=self._place.identity, unsaved=self._unsaved)
            return state if with_it is None or state.pending else with_it(state)

        return not self._acquire_epoch(durable, found, claimed).pending and with_it is not None

    def _settle(self, durable: DurableState) -> None:
        """Finds out what became of the unsettled backups, and writes that. Raises StorageError: call again.

        Nothing else is written before: a backup that an earlier actor committed is older than all later changes.
        """
        if self._unsettled:
            durable.change(self._unsettled.settle())

    # --- what an actor that has the sandbox writes

    def leave_behind(self, backup_id: str) -> None:
        """Notes a failed backup of this actor that could not be removed from the bucket. It is settled later."""
        if self._durable is not None and self._unsettled is not None:
            with self._durable.turn():
                self._unsettled.add(backup_id)

    def change(self, change: Change, *, keep: bool = True) -> None:
        """Changes the state; claims the epoch if needed. Raises SupersededError, StorageError.

        A change that could not be written is written with the next one, unless `keep` is False. Without an epoch it is
        dropped: the claim reads from the node's record what was restored.
        """
        durable = self._durable
        if durable is None:
            return
        is_made = False
        try:
            with durable.turn():
                is_claimed_with_it = self._claim(durable, change if keep else None)
                is_made = True
                if not is_claimed_with_it:
                    durable.change(change, keep=keep)
        except StorageError:
            if keep and not is_made:  # something has to be settled first, or another write waits for the bucket
                durable.intend(change)
            raise

    def relabel(self) -> None:
        """Adopts what others wrote into the state, such as labels. Waits `MOMENTS_S` at most for the bucket."""
        if self._durable is None or self._durable.state is None:
            return
        try:
            with within_moments():
                self._durable.check()
        except (StorageError, SupersededError) as e:  # the next write adopts them, if there is one
            log.warning("labels_not_read", sandbox=self._sandbox, error=type(e).__name__)

    def note_unsaved(self, roots: Sequence[str]) -> None:
        """Notes the writable roots with content that is in no checkpoint, and writes changes to the bucket.

        The write happens in the background, and nobody waits for it. After a loss, the recovery names these roots.
        """
        self._unsaved = list(roots)
        if self._lacks():
            state = self.state
            has_epoch = state is not None and state.node is not None
            # A claim under way may have been composed before, without these roots.
            self._catching_up.begin(after_s=0.0 if has_epoch else _SOON_S)

    def acknowledge(self, at: datetime) -> None:
        """Notes that a caller was surely informed of the recovery of that instant: no other caller has to be."""
        self.report(lambda state: after_acknowledgement(state, at))

    def check(self) -> None:
        """Checks that this actor still owns the sandbox. Raises SupersededError if not; StorageError."""
        if self._durable is not None:
            with self._durable.turn():
                self._claim(self._durable)
                self._durable.check()

    def report(self, change: Change) -> None:
        """Changes the state like `change`, but waits `MOMENTS_S` at most, and lets the bucket lag behind.

        Raises SupersededError if another actor has taken over, and for nothing else.
        """
        if self._durable is None or not self.life.may_write:
            return
        try:
            with within_moments():
                self.change(change)
        except StorageError as e:
            log.warning("state_not_written", sandbox=self._sandbox, detail=str(e))
            self._catching_up.begin(after_s=_LATER_S)
        except SupersededError:
            log.warning("superseded", sandbox=self._sandbox)
            if self.is_superseded:  # otherwise it was closed meanwhile
                raise

    def sleep(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Writes that the files are in these checkpoints only. Raises SupersededError, StorageError.

        After an error the files are still here, and the next wake on this node writes that to the bucket. `sleep` waits
        `MOMENTS_S` at most, as the sandbox serves nobody meanwhile.
        """
        durable = self._durable
        assert durable is not None
        with within_moments(), durable.turn():
            self._claim(durable)
            if not durable.is_here:
                durable.change(lambda state: state)
            self.life.move(Life.LEAVING)
            slept_at = datetime.now(UTC)
            try:
                durable.change(lambda state: asleep_in_bucket(state, checkpoints, slept_at), keep=False)
            except BaseException:
                self.life.end()
                raise
            self.life.move(Life.ASLEEP_IN_BUCKET)

    def close(self) -> None:
        """Ends the claim: no epoch is claimed and nothing is written until the next `locate`.

        Waits `MOMENTS_S` at most for a claim under way: the next actor would mistake a late epoch for a competitor's.
        """
        if self._durable is not None:
            with within_moments(), suppress(StoreUnavailableError), self._durable.turn():
                self.life.end()
        self.life.end()

    def clear_sleep(self) -> None:
        """Deletes backups that were made for a sleep, and that the sandbox is not recovered from any more."""
        if self._durable is not None and self._sleep_cleanup is not None:
            self._sleep_cleanup.clear(self._durable)

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
        if self._durable is None or self._unsettled is None or self._sleep_cleanup is None:
            self.life.move(Life.DESTROYED)
            return
        with self._durable.turn():
            self.life.move(Life.DESTROYED)
            self._found = None
            self._unsettled.inherit(())
            self._durable.forget(self._sleep_cleanup.delete_all)


def _found_or_damaged(durable: DurableState) -> StateRead | DocumentError:
    """Returns the state in the bucket, or the error of a document that cannot be used. Raises StorageError."""
    try:
        return StateRead(durable.find())
    except DocumentError as e:
        return e
