"""A state machine of the layers' protocol: writers, collectors and people who delete, one request at a time.

It runs the code of the service on a store in memory, with a clock of its own. Any process may die before or after any
request, and any request may fail before or after its effect, or have its effect hours later.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import SecretStr

from storage import keys
from storage.catalog import BackupCatalog
from storage.collect import collect
from storage.errors import (
    LayersUnusableError,
    ObjectMissingError,
    PreconditionFailedError,
    StorageError,
    StoreUnavailableError,
)
from storage.layers import NewLayers
from storage.metadata import BackupRecord, StoredLayer
from storage.store import ObjectStore, list_all
from tests.support.memory_store import MemoryObjectStore
from tests.support.stepped_store import Fate, Process

KEY = SecretStr("signing key")
TENANT = "acme"
GRACE = timedelta(days=1)
LONGEST_PAUSE = timedelta(hours=11)
"""No process waits longer for one request; a request without an answer has its effect within this time, or never."""
MOST_LAYERS = 4
_FATES: list[Fate] = ["refused", "unheard", "late", "killed before", "killed after"]


class UnconditionalStore(MemoryObjectStore):
    """A store without conditional writes, as rclone's."""

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        return super().put(key, data)

    def supports_conditional_writes(self) -> bool:
        return False


_STEP = re.compile(r"/layers/|^copy |^list tenants/$|^(put|delete|head) .*meta\.json")
"""The requests that make the protocol's steps."""


def layer_of(content: bytes) -> StoredLayer:
    sha256 = hashlib.sha256(content).hexdigest()
    return StoredLayer(sha256=sha256, size_bytes=len(content), part_bytes=5 * 2**20, parts=[sha256])


class LayerProtocol(RuleBasedStateMachine):
    """At most three writers and two collectors at once. No committed backup ever loses a layer."""

    @initialize(conditional=st.booleans(), contended=st.booleans(), late=st.booleans())
    def open(self, conditional: bool, contended: bool, late: bool = False) -> None:
        """A full backup and an incremental one; `contended`: on which another is made while it is deleted.

        `late` promotions begin after all else that a backup does before its commit, and not at once.
        """
        self.late_promotions = late
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.conditional = conditional
        self.store = MemoryObjectStore(self.clock) if conditional else UnconditionalStore(self.clock)
        self.running: list[tuple[Process, str]] = []
        self.moved: dict[Process, datetime] = {}
        self.late: list[tuple[datetime, str, Callable[[], object]]] = []
        """Requests that may have their effect yet: since when, and what they ask for."""
        self.ids: list[str] = []
        self.makers: dict[str, threading.Thread] = {}
        self._write_full(self.store, b"base 0", timedelta(days=30))
        self._write_incremental(self.store, self.committed()[0], b"layer 0", timedelta(days=30))
        if contended:
            self.contend()

    def contend(self, writers: int = 1, collectors: int = 1, *, on_full: bool = False) -> list[tuple[Process, str]]:
        """Begins backups on one that is then deleted, so that nobody else needs its layers, and collections.

        With `on_full` they are made on the full backup below that one, which stays, but whose layer nobody needs.
        """
        full, incremental = self.committed()
        base = full if on_full else incremental
        for number in range(writers):
            content = b"layer %d" % (number + 1)
            self._start("writer", partial(self._write_incremental, base=base, content=content, ttl=timedelta(days=30)))
        self.catalog(self.store).delete(TENANT, incremental.id)
        for _ in range(collectors):
            self.begin_collection()
        return list(self.running)

    def race(self, schedule: Sequence[tuple[int, int]], racers: Sequence[tuple[Process, str]]) -> None:
        """Lets the racers (by number) take so many steps of the protocol in turn, then each go on to its end.

        Requests that are no step of the protocol go with the step before them, as they commute with all others.
        """
        for number, steps in (*schedule, *((number, 1000) for number in range(len(racers)))):
            process, kind = racers[number]
            for _ in range(steps):
                if not process.is_over:
                    self._step(process, kind, "done")
                while not process.is_over and not _STEP.search(process.at):
                    self._step(process, kind, "done")
            self.every_backup_has_all_it_needs()

    def clock(self) -> datetime:
        return self.now

    def seconds(self) -> float:
        return self.now.timestamp()

    def catalog(self, store: ObjectStore) -> BackupCatalog:
        return BackupCatalog(store, KEY, self.clock)

    def committed(self) -> list[BackupRecord]:
        catalog = self.catalog(self.store)
        found = []
        for backup_id in self.ids:
            with contextlib.suppress(ObjectMissingError):
                found.append(catalog.read_signed(backup_id))
        return found

    def deletable(self) -> list[BackupRecord]:
        """The backups whose writers are over, and whose metadata is not on its way once more.

        `BackupCatalog.commit` writes metadata again if it got no answer and finds none. So a backup that a person
        deletes before both writes are over comes back, with nothing else of it: a limit that full backups have as well.
        """
        running = {process.thread for process, _ in self.running}
        awaited = {request for _, request, _ in self.late}
        return [
            record
            for record in self.committed()
            if self.makers[record.id] not in running and f"put {keys.metadata(record.id)}" not in awaited
        ]

    # What the processes do.

    def _record(self, own: StoredLayer, ttl: timedelta, **fields: object) -> BackupRecord:
        backup_id = str(uuid.UUID(int=len(self.ids) + 1))  # so that a history can be repeated
        self.ids.append(backup_id)
        self.makers[backup_id] = threading.current_thread()
        return BackupRecord.model_validate(
            {
                "id": backup_id,
                "dir": "/workspace",
                "ttl": ttl.total_seconds(),
                "created_at": self.now,
                "version": 1,
                "tenant": TENANT,
                "sandbox": "box",
                **{name: getattr(own, name) for name in ("size_bytes", "sha256", "part_bytes", "parts")},
                **fields,
            }
        )

    def _write_full(self, store: ObjectStore, content: bytes, ttl: timedelta) -> None:
        record = self._record(layer_of(content), ttl)
        store.put(keys.archive(record.id), content)
        self.catalog(store).commit(record)

    def _write_incremental(self, store: ObjectStore, base: BackupRecord, content: bytes, ttl: timedelta) -> None:
        """As a sandbox's actor does it."""
        catalog, own = self.catalog(store), layer_of(content)
        record = self._record(own, ttl)
        layers = NewLayers(store, TENANT, record.id, base, clock=self.seconds, threads=1, beside=self._beside)
        try:
            layers.hold()
            layers.add(own, lambda key: store.put(key, content))
            layers.check()
            fields = dict(record.__dict__, version=2, layers=layers.layers, parent=base.id)
            catalog.commit(BackupRecord.model_validate(fields))
        except LayersUnusableError:
            layers.release()
            self._write_full(store, content + b" in full", ttl)
        except StorageError as e:
            may_exist = isinstance(e, (StoreUnavailableError, PreconditionFailedError))
            if may_exist and e.key == keys.metadata(record.id) and self.conditional:
                if catalog.settle(record.id) is not None:
                    return
            else:
                catalog.abandon(record.id)
            layers.release()

    def _beside(self, task: Callable[[], object]) -> Callable[[], object]:
        """Runs a task when its end is waited for, or at once: one process makes one request at a time."""
        if self.late_promotions:
            return task
        failures: list[StorageError] = []
        try:
            task()
        except StorageError as e:
            failures.append(e)

        def wait() -> None:
            for failure in failures:
                raise failure

        return wait

    def _start(self, kind: str, work: Callable[[ObjectStore], object]) -> None:
        process = Process(f"{kind} {len(self.moved)}", self.store, work)
        self.moved[process] = self.now
        if not process.is_over:
            self.running.append((process, kind))

    def _count(self, kind: str) -> int:
        return sum(found == kind for _, found in self.running)

    # What may happen.

    @precondition(lambda self: self._count("writer") < 3)
    @rule(number=st.integers(0, 1), days=st.sampled_from([1, 30]))
    def begin_full_backup(self, number: int, days: int) -> None:
        content, ttl = b"base %d" % number, timedelta(days=days)
        self._start("writer", lambda store: self._write_full(store, content, ttl))

    @precondition(lambda self: self._count("writer") < 3 and self.committed())
    @rule(data=st.data(), number=st.integers(0, 2), days=st.sampled_from([1, 30]))
    def begin_incremental_backup(self, data: st.DataObject, number: int, days: int) -> None:
        base = data.draw(st.sampled_from(self.committed()), "base")
        if base.depth >= MOST_LAYERS:
            return
        content, ttl = b"layer %d" % number, timedelta(days=days)
        self._start("writer", lambda store: self._write_incremental(store, base, content, ttl))

    @precondition(lambda self: self._count("collector") < 2)
    @rule()
    def begin_collection(self) -> None:
        now = self.now
        self._start("collector", lambda store: collect(self.catalog(store), now=now, grace_s=GRACE.total_seconds()))

    @precondition(lambda self: self._count("deleter") < 2 and self.deletable())
    @rule(data=st.data())
    def begin_deletion(self, data: st.DataObject) -> None:
        backup_id = data.draw(st.sampled_from(self.deletable()), "backup").id
        self._start("deleter", lambda store: self.catalog(store).delete(TENANT, backup_id))

    @rule()
    def collect_at_once(self) -> None:
        collect(self.catalog(self.store), now=self.now, grace_s=GRACE.total_seconds())

    @precondition(lambda self: self.deletable())
    @rule(data=st.data())
    def delete_at_once(self, data: st.DataObject) -> None:
        backup_id = data.draw(st.sampled_from(self.deletable()), "backup").id
        self.catalog(self.store).delete(TENANT, backup_id)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), before=st.sampled_from(["", "/refs/", "/dying/", "delete tenants", "meta.json", "the end"]))
    def go_on(self, data: st.DataObject, before: str) -> None:
        """One process goes on for one request or more, until it is about to make one of a kind."""
        process, kind = data.draw(st.sampled_from(self.running), "process")
        self._step(process, kind, "done")
        while not process.is_over and before not in process.at:
            self._step(process, kind, "done")

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fate=st.sampled_from(_FATES))
    def disturb(self, data: st.DataObject, fate: Fate) -> None:
        process, kind = data.draw(st.sampled_from(self.running), "process")
        writes = process.at.split()[0] in ("put", "delete", "copy")
        # Without conditional writes, metadata that arrives late brings a backup back whose archive is gone already:
        # a known limit, which has nothing to do with layers.
        if fate == "late" and not (writes and (self.conditional or "meta.json" not in process.at)):
            fate = "refused"
        self._step(process, kind, fate)

    def _step(self, process: Process, kind: str, fate: Fate) -> None:
        request = process.at
        process.step(fate)
        self.moved[process] = self.now
        self.late += [(self.now, request, call) for call in process.late]
        process.late.clear()
        if process.is_over:
            self.running.remove((process, kind))
            if process.failure is not None and not isinstance(process.failure, StorageError):
                raise process.failure

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.late) - 1), "request")
        self._arrive(self.late.pop(at)[2])

    def _arrive(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(PreconditionFailedError, ObjectMissingError):
            call()

    @rule(hours=st.sampled_from([1, 6, 11]))
    def wait(self, hours: int) -> None:
        later = self.now + timedelta(hours=hours)
        waiting = [self.moved[process] for process, _ in self.running] + [since for since, _, _ in self.late]
        if all(later - since <= LONGEST_PAUSE for since in waiting):
            self.now = later

    # What must hold.

    @invariant()
    def every_backup_has_all_it_needs(self) -> None:
        if not hasattr(self, "store"):
            return
        for record in self.committed():
            if not record.is_incremental:
                continue
            for layer in record.layers or ():
                key = keys.layer(TENANT, layer.sha256)
                assert self.store.head(key).size_bytes == layer.size_bytes, key

    def teardown(self) -> None:
        """When all is quiet and every backup is deleted, one last collection leaves nothing."""
        if not hasattr(self, "store"):
            return
        for process, kind in list(self.running):
            while not process.is_over:
                self._step(process, kind, "done")
        for _, _, call in self.late:
            self._arrive(call)
        self.every_backup_has_all_it_needs()
        for record in self.committed():
            self.catalog(self.store).delete(TENANT, record.id)
        self.now += timedelta(days=3)
        collect(self.catalog(self.store), now=self.now, grace_s=GRACE.total_seconds())
        left = [row.key for row in list_all(self.store, "")]
        assert left == [], left
