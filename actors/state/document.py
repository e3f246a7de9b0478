"""The state document of a sandbox, `state.json` in the bucket. Its actor writes it by compare-and-swap.

Ray keeps one actor for each name, but after a partition the old process can live on beside the new one. So each actor
claims the next epoch (a fencing token) before it writes anything durable. An actor that finds a newer epoch than its
own has been replaced: it must write nothing any more (`SupersededError`), and has to end.

Where the bucket has no conditional writes, the actor reads the epoch before each write instead (`StateDocument`).
Then an actor does not notice another one that writes at the same instant.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from actors.errors import SupersededError
from actors.logs import log
from actors.state.lifecycle import Life, LifeCycle
from storage.errors import CorruptMetadataError, PreconditionFailedError, StorageError
from storage.metadata import BackupRecord, Checkpoint, Event, SandboxState
from storage.sandbox_documents import SandboxDocuments, StoredState
from storage.time_limit import held

MAX_EVENTS = 100
MAX_ROWS = 128
"""Largest number of directories in the state: its JSON is then small enough to be read, even with the longest paths."""
STATE_REPLACED = "state_replaced"
"""The event for a damaged state that the actor replaced by what it last wrote, or by what the node's record says."""
OTHERS = ("labels", "retention")
"""The fields that the service changes beside the actor, which adopts them."""

_TRIES = 8

Change = Callable[[SandboxState], SandboxState]


@dataclass(frozen=True, slots=True)
class NodeRef:
    """A node: the identity of its data folder, and its name in the cluster."""

    identity: str
    cluster_node: str | None = None


@dataclass(frozen=True, slots=True)
class StateRead:
    """The result of a successful read of a sandbox's state: the state, or None if there is none."""

    stored: StoredState | None


class StateDocument:
    """The bucket's document of one sandbox. All changes to it go through `update`. Thread-safe."""

    def __init__(self, documents: SandboxDocuments, tenant: str, sandbox: str) -> None:
        self._documents = documents
        self._tenant = tenant
        self._sandbox = sandbox

    def find(self) -> StoredState | None:
        """Reads the state; None if there is none. Raises StorageError."""
        return self._documents.find_state(self._tenant, self._sandbox)

    def update(
        self,
        change: Callable[[SandboxState | None], SandboxState],
        *,
        check: Callable[[StoredState | None], object] = lambda stored: None,
        known: StateRead | None = None,
        read: Callable[[], StoredState | None] | None = None,
    ) -> StoredState:
        """Changes the state by compare-and-swap, and again if others wrote it meanwhile. Returns what was written.

        Where the bucket has no conditional writes, the state is read and checked right before it is written.

        Args:
            change: makes the new state from the one in the bucket; called again if others have written meanwhile.
            check: raises an error, which ends the update, if the state found must not be changed.
            known: the last state that was read or written, to save a read.
            read: reads the state, instead of `find`.

        Raises:
            PreconditionFailedError: others kept writing it; nothing was written.
            StoreUnavailableError: it is unknown whether it was written.
        """
        read = read or self.find
        if known is None or not self._documents.store.supports_conditional_writes():
            known = StateRead(read())
        for _ in range(_TRIES):
            base = known.stored
            check(base)
            wanted = change(base.state if base else None)
            try:
                return StoredState(wanted, self._documents.write_state(wanted, replacing=base.etag if base else None))
            except PreconditionFailedError:
                known = StateRead(read())
        raise PreconditionFailedError("update", detail="others kept changing the state")

    def replace_damaged(self, state: SandboxState) -> StoredState:
        """Replaces a damaged state, and keeps a copy of the damaged one. Raises StorageError."""
        etag = self._documents.set_aside_state(self._tenant, self._sandbox)
        log.error("damaged_state_replaced", sandbox=self._sandbox)
        return StoredState(state, self._documents.write_state(state, replacing=etag))

    def delete(self) -> None:
        """Deletes the state. Raises StorageError: it may still be there."""
        self._documents.delete_state(self._tenant, self._sandbox)


class DurableState:
    """The state document under one actor's epoch. Thread-safe: writes happen one at a time, in order."""

    def __init__(self, documents: SandboxDocuments, tenant: str, sandbox: str, place: NodeRef, life: LifeCycle) -> None:
        """`life` is told if another actor has taken over the sandbox."""
        self._document = StateDocument(documents, tenant, sandbox)
        self._life = life
        self._bucket = documents.store.bucket
        self._tenant = tenant
        self._sandbox = sandbox
        self._place = place
        self._lock = threading.RLock()
        self._written: StoredState | None = None
        self._wanted: SandboxState | None = None
        self._intended: deque[Change] = deque()
        """Changes that could not wait for their turn. They are made before the next one."""
        self._is_unwritten = False
        self.is_here = False
        """True if the bucket says for certain that the sandbox's files are on this node."""

    @property
    def state(self) -> SandboxState | None:
        """The state as this actor wants it; None before it has an epoch."""
        return self._wanted

    @property
    def is_superseded(self) -> bool:
        """True if another actor has taken over."""
        return self._life.state is Life.SUPERSEDED

    @property
    def is_behind(self) -> bool:
        """True if the bucket may differ from the wanted state, because a write is under way or has failed."""
        return self._is_unwritten or bool(self._intended)

    def find(self) -> StoredState | None:
        """Reads the bucket's state; None if there is none. Raises StorageError."""
        return self._document.find()

    def replace_damaged(self, state: SandboxState) -> StoredState:
        """Replaces the bucket's damaged state, and keeps a copy of the damaged one. Raises StorageError."""
        return self._document.replace_damaged(state)

    def turn(self) -> AbstractContextManager[None]:
        """Keeps other threads from the state within the block. The thread that has the turn may take it again.

        Raises StoreUnavailableError if the caller has a time limit, and another thread holds the turn beyond it.
        """
        return held(self._lock, "update", bucket=self._bucket)

    def acquire_epoch(self, found: StoredState | None, change: Change) -> SandboxState:
        """Claims the next epoch after `found`, with `change` made to the rest. An actor may claim several in turn.

        Raises:
            SupersededError: another actor has claimed an epoch since.
            StorageError: it is not known whether the epoch was claimed; read the state and claim again.
        """
        with self.turn():
            if self._written is not None:
                self._check_epoch(found, self._written.state.epoch)
            self._written = self._document.update(
                lambda base: self._next(base, change),  # a label may have changed, or the state was deleted
                check=lambda base: self._check_epoch(base, _epoch(found)),
                known=StateRead(found),
            )
            self._wanted, self._is_unwritten = self._written.state, False
            self._intended.clear()  # they were meant for an earlier epoch
            self.is_here = True
            return self._wanted

    def _next(self, base: SandboxState | None, change: Change) -> SandboxState:
        now = datetime.now(UTC)
        state = base or SandboxState(id=self._sandbox, tenant=self._tenant, created_at=now)
        return change(state).model_copy(
            update={
                "epoch": state.epoch + 1,
                "node": self._place.identity,
                "cluster_node": self._place.cluster_node,
                "slept_on": None,
                "last_used_at": now,
            }
        )

    def _check_epoch(self, stored: StoredState | None, epoch: int) -> None:
        if _epoch(stored) != epoch:
            self.give_way()

    def give_way(self) -> NoReturn:
        """Notes that another actor has the sandbox. Raises SupersededError."""
        self._life.move(Life.SUPERSEDED)
        raise SupersededError

    def change(self, change: Change, *, keep: bool = True) -> None:
        """Makes a change and writes it. If that fails, the next write includes the change, unless `keep` is False.

        Raises:
            SupersededError: nothing was written, and nothing will be.
            StorageError: it is not known whether it was written; without `keep`, the next write reverts it.
        """
        with self.turn():
            if self.is_superseded or self._written is None or self._wanted is None:  # replaced, or no epoch
                raise SupersededError
            before = self._wanted = self._with_intended(self._wanted)
            self._wanted = change(before).model_copy(update={"last_used_at": datetime.now(UTC)})
            self._is_unwritten = True
            self.is_here = self.is_here and self._wanted.node is not None
            try:
                self._write()
            except StorageError:
                if not keep:
                    self._wanted = before.model_copy(update=_of_others(self._wanted))
                raise
            self._is_unwritten = False
            self.is_here = self._wanted.node is not None

    def _with_intended(self, state: SandboxState) -> SandboxState:
        while self._intended:
            state = self._intended[0](state)
            self._is_unwritten = True
            self._intended.popleft()
        return state

    def intend(self, change: Change) -> None:
        """Makes a change that is written with the next one. Never waits. Without an epoch it does nothing."""
        if self._wanted is None or self.is_superseded:
            return
        self._intended.append(change)
        if self._lock.acquire(blocking=False):
            try:
                if self._wanted is not None:
                    self._wanted = self._with_intended(self._wanted)
            finally:
                self._lock.release()

    def check(self) -> None:
        """Adopts what others changed in the bucket.

        Raises SupersededError if another actor has claimed an epoch; StorageError.
        """
        with self.turn():
            if self._written is None:
                raise SupersededError
            self._adopt(self._current())

    def check_forgettable(self) -> None:
        """Checks, before anything is removed, that `forget` may go on. Raises like `forget`."""
        with self.turn():
            if self.is_superseded:
                raise SupersededError
            with contextlib.suppress(CorruptMetadataError):
                found = self.find()
                if self._written is not None and found is not None:
                    self._adopt(found)

    def forget(self, first: Callable[[SandboxState | None], None]) -> None:
        """Calls `first` with the state (None if it is damaged), then deletes the state. The actor's epoch ends.

        Raises:
            NewerDocumentError: a later release has written the state; nothing was done.
            SupersededError: nothing was done.
            StorageError: the state may still be there.
        """
        with self.turn():
            if self.is_superseded:
                raise SupersededError
            try:
                found, is_damaged = self.find(), False
            except CorruptMetadataError as e:
                log.error("damaged_state_deleted", sandbox=self._sandbox, detail=str(e))
                found, is_damaged = None, True
            if self._written is not None and found is not None:  # if it is gone, an earlier try has deleted it
                self._adopt(found)
            if found is not None or is_damaged:
                first(found.state if found is not None else None)
                self._document.delete()
            self._written = self._wanted = None
            self._intended.clear()
            self.is_here = False

    def _write(self) -> None:
        self._written = self._document.update(
            self._as_wanted, check=self._adopt, known=StateRead(self._written), read=self._current
        )

    def _as_wanted(self, _: SandboxState | None) -> SandboxState:
        assert self._wanted is not None
        return self._wanted

    def _current(self) -> StoredState | None:
        """Reads the bucket's state. If it is damaged, replaces it with what this actor wrote last."""
        try:
            return self.find()
        except CorruptMetadataError:
            assert self._written is not None and self._wanted is not None
            replaced = self.replace_damaged(self._written.state)
            self._wanted = happened(self._wanted, STATE_REPLACED, node=self._place.identity)
            return replaced

    def _adopt(self, found: StoredState | None) -> None:
        """Continues from the bucket's state if it is of our epoch. Others change nothing but `OTHERS`."""
        assert self._written is not None and self._wanted is not None
        if found is None or found.state.epoch != self._written.state.epoch:
            self.give_way()
        self._written = found
        self._wanted = self._wanted.model_copy(update=_of_others(found.state))


def _of_others(state: SandboxState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in OTHERS}


def _epoch(stored: StoredState | None) -> int:
    return stored.state.epoch if stored else 0


def happened(state: SandboxState, kind: str, *, at: datetime | None = None, **details: Any) -> SandboxState:
    """The state with one more event, of now or of `at`."""
    event = Event(kind=kind, at=at or datetime.now(UTC), **details)
    return state.model_copy(update={"events": [*state.events, event][-MAX_EVENTS:]})


def with_checkpoint(state: SandboxState, checkpoint: Checkpoint, *, covers_all: bool = True) -> SandboxState:
    """The state with a directory's newest checkpoint, in place of its older one.

    The new checkpoint also replaces those of directories inside, unless its backup left something out (`covers_all` is
    False). The last `MAX_ROWS` checkpoints are kept.
    """
    inside = checkpoint.dir.rstrip("/") + "/"
    kept = [
        other
        for other in state.checkpoints
        if other.dir != checkpoint.dir and not (covers_all and other.dir.startswith(inside))
    ]
    unsaved = state.unsaved and [root for root in state.unsaved if root != checkpoint.dir or not covers_all]
    return state.model_copy(update={"checkpoints": [*kept, checkpoint][-MAX_ROWS:], "unsaved": unsaved})


def with_backup(state: SandboxState, record: BackupRecord) -> SandboxState:
    """The state of a sandbox after one of its backups was committed."""
    checkpoint = Checkpoint(
        dir=record.place or record.dir, backup_id=record.id, taken_at=record.created_at, of_sleep=bool(record.of_sleep)
    )
    state = with_checkpoint(state, checkpoint, covers_all=not record.partial)
    return happened(state, "backed_up", dir=record.dir, backup_id=record.id)
