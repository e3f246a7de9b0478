"""The state document of a sandbox, `state.json` in the bucket. Its actor writes it by compare-and-swap.

Ray keeps one actor for each name, but after a partition the old process can live on beside the new one. So each actor
claims the next epoch (a fencing token) before it writes anything durable. An actor that finds a newer epoch than its
own has been replaced: it must write nothing any more (`SupersededError`), and has to end.

Where the bucket has no conditional writes, the actor reads the epoch before each write instead. Two actors that write
in the same instant are then not told apart.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from actors.errors import SupersededError
from actors.logs import log
from storage.catalog import BackupCatalog, StoredState
from storage.errors import CorruptMetadataError, PreconditionFailedError, StorageError
from storage.metadata import BackupRecord, Checkpoint, Event, SandboxState

MAX_EVENTS = 100
MAX_ROWS = 128
"""Largest number of directories in the state: its JSON is then small enough to be read, even with the longest paths."""
STATE_REPLACED = "state_replaced"
"""The event of a damaged state that the actor replaced, by what it wrote last or by what the node's record says."""
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


class DurableState:
    """The state document under one actor's epoch. Thread-safe: writes happen one at a time, in order."""

    def __init__(self, catalog: BackupCatalog, tenant: str, sandbox: str, place: NodeRef) -> None:
        self._catalog = catalog
        self._tenant = tenant
        self._sandbox = sandbox
        self._place = place
        self._lock = threading.Lock()
        self._written: StoredState | None = None
        self._wanted: SandboxState | None = None
        self.is_superseded = False
        self.is_behind = False
        """True if the bucket may differ from the wanted state, because a write is under way or has failed."""
        self.is_here = False
        """True if the bucket says for certain that the sandbox's files are on this node."""

    @property
    def state(self) -> SandboxState | None:
        """The state as this actor wants it; None before it has an epoch."""
        return self._wanted

    def find(self) -> StoredState | None:
        """Reads the bucket's state; None if there is none. Raises StorageError."""
        return self._catalog.find_state(self._tenant, self._sandbox)

    def replace_damaged(self, state: SandboxState) -> StoredState:
        """Replaces the bucket's damaged state, and keeps a copy of that aside. Raises StorageError."""
        etag = self._catalog.set_aside_state(self._tenant, self._sandbox)
        log.error("damaged_state_replaced", sandbox=self._sandbox)
        return StoredState(state, self._catalog.write_state(state, replacing=etag))

    def acquire_epoch(self, found: StoredState | None, change: Change) -> SandboxState:
        """Claims the next epoch after `found`, with `change` made to the rest. An actor may claim several in turn.

        Raises:
            SupersededError: another actor has claimed an epoch since.
            StorageError: it is not known whether the epoch was claimed; read the state and claim again.
        """
        with self._lock:
            base = found
            if self._written is not None:
                self._check_epoch(found, self._written.state.epoch)
            if not self._catalog.store.supports_conditional_writes():
                base = self._check_epoch(self.find(), _epoch(found))
            for _ in range(_TRIES):
                mine = self._next(base, change)
                try:
                    etag = self._catalog.write_state(mine, replacing=base.etag if base else None)
                except PreconditionFailedError:
                    base = self._check_epoch(self.find(), _epoch(found))  # a label changed, or it was deleted
                    continue
                self._written, self._wanted, self.is_behind = StoredState(mine, etag), mine, False
                self.is_here = True
                return mine
            raise PreconditionFailedError("acquire_epoch", detail="the state changes all the time")

    def _next(self, base: StoredState | None, change: Change) -> SandboxState:
        now = datetime.now(UTC)
        state = base.state if base else SandboxState(id=self._sandbox, tenant=self._tenant, created_at=now)
        return change(state).model_copy(
            update={
                "epoch": state.epoch + 1,
                "node": self._place.identity,
                "cluster_node": self._place.cluster_node,
                "slept_on": None,
                "last_used_at": now,
            }
        )

    def _check_epoch(self, stored: StoredState | None, epoch: int) -> StoredState | None:
        if _epoch(stored) != epoch:
            self.give_way()
        return stored

    def give_way(self) -> NoReturn:
        """Notes that another actor has the sandbox. Raises SupersededError."""
        self.is_superseded = True
        raise SupersededError

    def change(self, change: Change, *, keep: bool = True) -> None:
        """Makes a change and writes it. If that fails, the next write includes the change, unless `keep` is False.

        Raises:
            SupersededError: nothing was written, and nothing will be.
            StorageError: it is not known whether it was written; without `keep`, the next write reverts it.
        """
        with self._lock:
            if self.is_superseded or self._written is None or self._wanted is None:  # replaced, or no epoch
                raise SupersededError
            before, used = self._wanted, {"last_used_at": datetime.now(UTC)}
            self._wanted = change(before).model_copy(update=used)
            self.is_behind = True
            self.is_here = self.is_here and self._wanted.node is not None
            try:
                self._write()
            except StorageError:
                if not keep:
                    self._wanted = before.model_copy(update={"labels": self._wanted.labels})
                raise
            self.is_behind = False
            self.is_here = self._wanted.node is not None

    def intend(self, change: Change) -> None:
        """Makes a change that is written with the next one. Without an epoch it does nothing."""
        with self._lock:
            if self._wanted is not None and not self.is_superseded:
                self._wanted = change(self._wanted)
                self.is_behind = True

    def check(self) -> None:
        """Adopts the bucket's labels. Raises SupersededError if another actor has claimed an epoch; StorageError."""
        with self._lock:
            if self._written is None:
                raise SupersededError
            self._adopt(self._current())

    def check_forgettable(self) -> None:
        """Checks, before anything is removed, that `forget` may go on. Raises like `forget`."""
        with self._lock:
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
        with self._lock:
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
                self._catalog.delete_state(self._tenant, self._sandbox)
            self._written = self._wanted = None
            self.is_here = False

    def _write(self) -> None:
        assert self._written is not None
        if not self._catalog.store.supports_conditional_writes():
            self._adopt(self._current())
        for _ in range(_TRIES):
            assert self._wanted is not None
            wanted = self._wanted
            try:
                etag = self._catalog.write_state(wanted, replacing=self._written.etag)
            except PreconditionFailedError:
                self._adopt(self._current())
                continue
            self._written = StoredState(wanted, etag)
            return
        raise PreconditionFailedError("write", detail="the state changes all the time")

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
        """Continues from the bucket's state if it is of our epoch. Others change nothing but labels."""
        assert self._written is not None and self._wanted is not None
        if found is None or found.state.epoch != self._written.state.epoch:
            self.give_way()
        self._written = found
        self._wanted = self._wanted.model_copy(update={"labels": found.state.labels})


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
