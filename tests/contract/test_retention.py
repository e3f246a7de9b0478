"""Retention over a store: policies, runs, what a run must not delete, and runs that are cut off anywhere."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from actors.config import NodeConfig, SandboxConfig
from actors.errors import (
    BackupNotFoundError,
    HoldfastError,
    InvalidRequestError,
    SandboxNotFoundError,
    StorageUnavailableError,
)
from actors.models import KeepReason, Retention, RetentionChange, RetentionReport, RetentionRun
from actors.sandbox.steps import RetentionStep, Step
from actors.service.facade import Service
from actors.service.retention import RetentionQueue
from actors.state.document import DurableState, NodeRef
from actors.state.lifecycle import LifeCycle
from storage import keys
from storage.catalog import BackupCatalog
from storage.collect import collect
from storage.errors import StoreUnavailableError
from storage.metadata import BackupRecord, Checkpoint, RestoredDirectory, SandboxState
from storage.store import ObjectStore
from tests.contract.conftest import Place
from tests.support.faulty_store import FaultyStore
from tests.support.killing import STEP_LOG, observe_steps
from tests.support.memory_store import MemoryObjectStore
from tests.support.s3 import FAST

NOW = datetime.now(UTC).replace(microsecond=0)
KEY = SecretStr("signing key")
DRY = RetentionRun(dry_run=True)
RUN = RetentionRun()


class Bucket:
    """A service over a store, and one sandbox with backups there."""

    def __init__(self, store: ObjectStore, place: Place | None = None) -> None:
        self.config = SandboxConfig(
            node=NodeConfig(data_dir=Path("/nowhere")),
            transfer=FAST,
            bucket=place.server if place else None,
            signing_key=KEY,
        )
        self.catalog = BackupCatalog(store, KEY)
        self.box = f"box-{uuid.uuid4().hex[:12]}"
        self.service = Service(self.config, self.catalog, awake=lambda tenant, sandboxes: ())

    def run(self, options: RetentionRun = RUN) -> RetentionReport:
        return self.service.retention.run("acme", self.box, options)

    def backup(self, hours_ago: float = 1, *, sandbox: str | None = None, of_sleep: bool | None = None) -> str:
        record = BackupRecord(
            id=str(uuid.uuid4()),
            dir="/workspace",
            size_bytes=7,
            ttl=1e7,
            created_at=NOW - timedelta(hours=hours_ago),
            version=1,
            tenant="acme",
            sandbox=sandbox or self.box,
            of_sleep=of_sleep,
        )
        self.catalog.store.put(keys.archive(record.id), b"archive")
        self.catalog.commit(record)
        return record.id

    def write(self, **fields: object) -> None:
        """Writes the sandbox's state, as its actor does."""
        found = self.catalog.sandboxes.find_state("acme", self.box)
        made = found.state if found else SandboxState(id=self.box, tenant="acme", created_at=NOW)
        self.catalog.sandboxes.write_state(made.model_copy(update=fields), replacing=found.etag if found else None)

    def keep(self, **policy: object) -> Retention:
        return self.service.retention.set("acme", self.box, Retention.model_validate(policy))

    def left(self) -> set[str]:
        return {record.id for record in self.catalog.all_records("acme", self.box)}


@pytest.fixture
def bucket(place_of_documents: Place) -> Bucket:
    return Bucket(place_of_documents.store, place_of_documents)


@pytest.fixture
def memory() -> Bucket:
    return Bucket(MemoryObjectStore())


def test_a_policy_is_set_changed_and_removed_and_nothing_else_of_the_state(bucket: Bucket) -> None:
    policies = bucket.service.retention
    with pytest.raises(SandboxNotFoundError):
        policies.policy("acme", bucket.box)
    assert policies.set("acme", bucket.box, Retention()) == Retention()
    assert bucket.catalog.sandboxes.find_state("acme", bucket.box) is None
    bucket.write(epoch=7, labels={"a": "1"})
    a = bucket.backup()
    assert bucket.keep(keep_last=3, pinned=[a]) == Retention(keep_last=3, pinned=[a])
    assert policies.change("acme", bucket.box, RetentionChange(keep_daily=2, unpin=[a])).pinned == []
    assert policies.policy("acme", bucket.box) == Retention(keep_last=3, keep_daily=2)
    found = bucket.catalog.sandboxes.find_state("acme", bucket.box)
    assert found is not None and (found.state.epoch, found.state.labels) == (7, {"a": "1"})
    bucket.service.set_labels("acme", bucket.box, {"b": "2"})
    assert policies.policy("acme", bucket.box).keep_last == 3
    assert bucket.keep() == Retention()
    found = bucket.catalog.sandboxes.find_state("acme", bucket.box)
    assert found is not None and b"retention" not in found.state.to_json()


def test_only_backups_of_the_sandbox_itself_can_be_pinned(bucket: Bucket) -> None:
    other, slept, own = bucket.backup(sandbox="other"), bucket.backup(of_sleep=True), bucket.backup()
    bucket.keep(keep_last=1)
    for wrong, error in (
        (str(uuid.uuid4()), BackupNotFoundError),
        (other, BackupNotFoundError),
        (slept, InvalidRequestError),
    ):
        with pytest.raises(error) as raised:
            bucket.keep(keep_last=2, pinned=[own, wrong])
        assert raised.value.context == {"backup": wrong} or wrong not in (other, slept)
    assert bucket.service.retention.policy("acme", bucket.box) == Retention(keep_last=1)


def test_a_pin_of_a_deleted_backup_is_named_and_may_stay(bucket: Bucket) -> None:
    a, b = bucket.backup(1), bucket.backup(2)
    bucket.keep(keep_last=1, pinned=[b])
    bucket.service.delete_backup("acme", b)
    bucket.keep(keep_last=1, pinned=[b])
    report = bucket.run()
    assert (report.missing_pins, [row.id for row in report.kept], report.deleted) == ([b], [a], [])


def test_a_run_deletes_what_a_dry_run_names_and_nothing_else(bucket: Bucket) -> None:
    made = [bucket.backup(hours) for hours in range(1, 6)]
    other = bucket.backup(9, sandbox="other")
    bucket.keep(keep_last=2, pinned=[made[4]])
    said = bucket.run(DRY)
    assert bucket.left() == set(made)
    assert [row.id for row in said.deleted] == made[2:4]
    assert {row.id: row.reasons for row in said.kept} == {
        made[0]: [KeepReason.LAST],
        made[1]: [KeepReason.LAST],
        made[4]: [KeepReason.PINNED],
    }
    done = bucket.run()
    assert done == said.model_copy(update={"dry_run": False})
    assert bucket.left() == {made[0], made[1], made[4]}
    assert bucket.catalog.get("acme", other).id == other
    assert bucket.run().deleted == []
    for gone in made[2:4]:
        assert not bucket.catalog.store.list(f"backups/{gone}/").objects


def test_a_dry_run_tries_a_policy_that_is_not_set(memory: Bucket) -> None:
    made = [memory.backup(hours) for hours in (1, 2, 3)]
    memory.write()
    said = memory.run(RetentionRun(dry_run=True, policy=Retention(keep_last=1)))
    assert [row.id for row in said.deleted] == made[1:]
    assert memory.run().deleted == []
    assert {reason for row in memory.run().kept for reason in row.reasons} == {KeepReason.NO_RULE}


def test_a_run_for_a_sandbox_without_state_is_refused(memory: Bucket) -> None:
    memory.backup()
    with pytest.raises(SandboxNotFoundError):
        memory.run()
    assert len(memory.left()) == 1


def test_what_a_sleep_or_a_recovery_needs_is_never_deleted(bucket: Bucket) -> None:
    newest, checkpoint, restored, pending = (bucket.backup(hours) for hours in (1, 2, 3, 4))
    slept = bucket.backup(5, of_sleep=True)
    doomed = bucket.backup(6)
    bucket.keep(keep_last=1)
    bucket.write(
        epoch=1,
        pending=[pending],
        sleep_backups=[slept],
        checkpoints=[
            Checkpoint(dir="/workspace", backup_id=checkpoint, taken_at=NOW),
            Checkpoint(dir="/home", backup_id=slept, taken_at=NOW, of_sleep=True),
        ],
        restored=[RestoredDirectory(dir="/workspace", backup_id=restored, mode="overlay", restored_at=NOW)],
    )
    assert [row.id for row in bucket.run().deleted] == [doomed]
    assert bucket.left() == {newest, checkpoint, restored, pending, slept}


def test_a_damaged_backup_is_kept_and_named(bucket: Bucket) -> None:
    made = [bucket.backup(hours) for hours in (1, 2, 3)]
    bucket.keep(keep_last=1)
    bucket.catalog.store.put(keys.metadata(made[1]), b"{")
    report = bucket.run()
    assert [row.id for row in report.deleted] == [made[2]]
    assert {row.id: row.reasons for row in report.kept}[made[1]] == [KeepReason.UNUSABLE]
    assert bucket.catalog.store.get(keys.metadata(made[1])).data == b"{"


def test_a_policy_that_cannot_be_read_deletes_nothing(memory: Bucket) -> None:
    memory.backup(1), memory.backup(2)
    memory.keep(keep_last=1)
    memory.catalog.store.put(keys.state("acme", memory.box), b"{")
    with pytest.raises(HoldfastError) as raised:
        memory.run()
    assert raised.value.code == "DOCUMENT_DAMAGED"
    assert len(memory.left()) == 2
    report = memory.service.collect(dry_run=False)
    assert report.unreadable == [keys.state("acme", memory.box)]
    assert len(memory.left()) == 2


def test_an_actor_adopts_the_policy_and_never_writes_an_older_one(bucket: Bucket) -> None:
    actor = DurableState(bucket.catalog.sandboxes, "acme", bucket.box, NodeRef("node"), LifeCycle())
    actor.acquire_epoch(None, lambda state: state)
    bucket.keep(keep_last=2)
    actor.change(lambda state: state.model_copy(update={"unsaved": []}))
    assert actor.state is not None and actor.state.retention is not None
    assert actor.state.retention.keep_last == 2
    assert bucket.service.retention.policy("acme", bucket.box) == Retention(keep_last=2)


def at_step(name: Step, when: str, nth: int, act: Callable[[], None]) -> None:
    left = [nth]

    def seen(step: Step, moment: str) -> None:
        if (step, moment) == (name, when):
            left[0] -= 1
            if left[0] == 0:
                act()

    observe_steps(seen)


def test_a_sandbox_may_begin_to_need_a_backup_while_a_run_deletes(
    memory: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [memory.backup(hours) for hours in range(1, 100)]
    memory.keep(keep_last=1)
    monkeypatch.setattr(STEP_LOG, "handlers", [])
    restored = RestoredDirectory(dir="/workspace", backup_id=made[1], mode="overlay", restored_at=NOW)
    at_step(RetentionStep.DELETE, "after", 1, lambda: memory.write(restored=[restored]))
    report = memory.run()
    assert memory.left() == set(made[:2])
    assert {row.id: row.reasons for row in report.kept}[made[1]] == [KeepReason.RESTORED]


@pytest.mark.parametrize("destroyed", [False, True])
def test_a_run_ends_when_its_policy_is_changed_or_its_sandbox_destroyed(
    memory: Bucket, monkeypatch: pytest.MonkeyPatch, *, destroyed: bool
) -> None:
    made = [memory.backup(hours) for hours in range(1, 100)]
    memory.keep(keep_last=1)
    monkeypatch.setattr(STEP_LOG, "handlers", [])

    def act() -> None:
        if destroyed:
            memory.catalog.sandboxes.delete_state("acme", memory.box)
        else:
            memory.keep(keep_last=50)

    at_step(RetentionStep.DELETE, "after", 1, act)
    report = memory.run()
    assert report.interrupted and 0 < len(report.deleted) < 90
    assert memory.left() == set(made) - {row.id for row in report.deleted}
    assert set(made[:50]) <= memory.left()


class _Crash(BaseException):
    """Stands for the death of the process: nothing catches it."""


@pytest.mark.parametrize("step", RetentionStep)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_run_cut_off_at_any_step_is_finished_by_the_next(
    memory: Bucket, monkeypatch: pytest.MonkeyPatch, step: RetentionStep, when: str, nth: int
) -> None:
    made = [memory.backup(hours) for hours in range(1, 70)]
    memory.keep(keep_last=3)
    monkeypatch.setattr(STEP_LOG, "handlers", [])

    def die() -> None:
        raise _Crash

    at_step(step, when, nth, die)
    if step is RetentionStep.DECIDE and nth == 2:
        memory.run()
    else:
        with pytest.raises(_Crash):
            memory.run()
    assert set(made[:3]) <= memory.left()
    monkeypatch.setattr(STEP_LOG, "handlers", [])
    memory.run()
    assert memory.left() == set(made[:3])


def test_a_run_passes_every_step_in_order(memory: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for hours in range(1, 36):
        memory.backup(hours)
    memory.keep(keep_last=1)
    passed: list[tuple[Step, str]] = []
    monkeypatch.setattr(STEP_LOG, "handlers", [])
    observe_steps(lambda step, when: passed.append((step, when)))
    memory.run()
    batch = (RetentionStep.CHECK, RetentionStep.DELETE)
    assert passed == [(step, when) for step in (RetentionStep.DECIDE, *batch, *batch) for when in ("before", "after")]


class FailingOnce:
    """Wraps a store, and fails at its nth request, before or after the effect."""

    def __init__(self, inner: ObjectStore, nth: int, *, after: bool) -> None:
        self._inner, self._nth, self._after = inner, nth, after
        self._lock = threading.Lock()
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in ("get", "put", "head", "delete", "list"):
            return method

        def call(key: str, *args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.requests += 1
                fails = self.requests == self._nth
            if fails and not self._after:
                raise StoreUnavailableError(name, bucket="b", key=key)
            result = method(key, *args, **kwargs)
            if fails:
                raise StoreUnavailableError(name, bucket="b", key=key)
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
def test_a_request_that_fails_anywhere_leaves_whole_backups_and_the_next_run_goes_on(*, after: bool) -> None:
    for nth in range(1, 1000):
        bucket = Bucket(MemoryObjectStore())
        store = bucket.catalog.store
        made = [bucket.backup(hours) for hours in range(1, 5)]
        bucket.keep(keep_last=2)
        failing = FailingOnce(store, nth, after=after)
        service = Service(bucket.config, BackupCatalog(failing, KEY), awake=lambda tenant, sandboxes: ())
        with contextlib.suppress(StorageUnavailableError):
            service.retention.run("acme", bucket.box, RUN)
        for backup_id in bucket.left():
            assert store.head(keys.archive(backup_id)).size_bytes
        bucket.run()
        assert bucket.left() == set(made[:2])
        collect(bucket.catalog, now=NOW + timedelta(days=3), grace_s=0)
        assert {row.key for row in store.list("backups/").objects} == {
            key for each in made[:2] for key in (keys.archive(each), keys.metadata(each))
        }
        if failing.requests < nth:
            break
    assert nth > 15


def test_a_collection_applies_every_policy_and_names_the_sandboxes_it_failed_for(bucket: Bucket) -> None:
    made = [bucket.backup(hours) for hours in (1, 2, 3)]
    bucket.keep(keep_last=1)
    said = bucket.service.collect(dry_run=True)
    assert set(made[1:]) <= set(said.retired_backups)
    assert bucket.left() == set(made)
    done = bucket.service.collect(dry_run=False)
    assert set(made[1:]) <= set(done.retired_backups)
    assert (bucket.left(), done.retention_failed) == ({made[0]}, [])


def test_a_collection_goes_on_after_a_policy_that_could_not_be_applied(memory: Bucket) -> None:
    first = [memory.backup(hours) for hours in (1, 2)]
    memory.keep(keep_last=1)
    failed_for = memory.box
    memory.box = "second"
    second = [memory.backup(hours) for hours in (1, 2)]
    memory.keep(keep_last=1)
    faulty = FaultyStore(memory.catalog.store)
    faulty.fail("list", f"{failed_for}/backups/", after=False)
    service = Service(memory.config, BackupCatalog(faulty, KEY), awake=lambda tenant, sandboxes: ())
    report = service.collect(dry_run=False)
    assert (report.retention_failed, report.retired_backups) == ([f"acme/{failed_for}"], [second[1]])
    assert service.collect(dry_run=False).retired_backups == [first[1]]


def test_each_sandbox_waits_once_and_a_failure_keeps_no_other_waiting() -> None:
    applied: list[tuple[str, str]] = []

    def apply(tenant: str, sandbox: str) -> None:
        applied.append((tenant, sandbox))
        if sandbox == "a":
            raise StorageUnavailableError("Away.")

    queue = RetentionQueue(apply)
    for name in ("a", "b", "a", "a"):
        queue.add("acme", name)
    assert [queue.step(), queue.step()] == [0.0, 0.0]
    assert applied == [("acme", "a"), ("acme", "b")]
    queue.add("acme", "a")
    queue.step()
    assert len(applied) == 3


def test_a_deletion_reads_the_metadata_and_the_state_once(memory: Bucket) -> None:
    faulty = FaultyStore(memory.catalog.store)
    counted = Bucket(faulty)
    backup_id = counted.backup()
    counted.write(epoch=1)
    faulty.calls.clear()
    counted.service.delete_backup("acme", backup_id)
    assert [call.split()[0] for call in faulty.calls] == ["get", "get", "delete", "delete", "delete", "delete"]


def test_a_policy_is_applied_without_reading_metadata_while_it_keeps_as_many_as_there_are(memory: Bucket) -> None:
    faulty = FaultyStore(memory.catalog.store)
    counted = Bucket(faulty)
    made = [counted.backup(hours_ago=hours) for hours in (3, 2, 1)]
    counted.keep(keep_last=3)
    faulty.calls.clear()
    assert counted.service.retention.apply("acme", counted.box) == ()
    assert [call.split()[0] for call in faulty.calls] == ["get", "list"]
    counted.keep(pinned=made)
    faulty.calls.clear()
    assert counted.service.retention.apply("acme", counted.box) == ()
    assert [call.split()[0] for call in faulty.calls] == ["get"]
    counted.keep(keep_last=2)
    assert counted.service.retention.apply("acme", counted.box) == made[:1]
    assert counted.left() == set(made[1:])
