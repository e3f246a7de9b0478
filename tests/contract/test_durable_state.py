"""Epochs, fencing and settling of backups, over stores with and without conditional writes, and with lost answers."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from pydantic import SecretStr

from actors.errors import SandboxUnavailableError, SupersededError
from actors.state.backup_ledger import SandboxLedger
from actors.state.changes import after_restore, restored_in
from actors.state.document import (
    MAX_EVENTS,
    MAX_ROWS,
    DurableState,
    NodeRef,
    StateRead,
    happened,
    with_checkpoint,
)
from actors.state.lifecycle import Life, LifeCycle
from actors.state.location import Origin
from actors.state.node_record import Entry, Record, RecoveryItem, RecoveryPlan
from actors.state.ownership import Ownership
from storage import keys
from storage.catalog import BackupCatalog
from storage.errors import ObjectMissingError, StorageError, StoreUnavailableError
from storage.metadata import BackupRecord, Checkpoint, RecoveredDirectory, Recovery, SandboxState
from storage.sandbox_documents import STATE_BYTES, StoredState
from storage.store import ObjectStore
from tests.contract.conftest import Place
from tests.support.faulty_store import FaultyStore
from tests.support.held_store import HeldStore, LateStore
from tests.support.killing import Interrupted
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import Background

TENANT = "default"
NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass
class World:
    """A sandbox's state in a bucket, and several actors that use it."""

    faulty: FaultyStore
    catalog: BackupCatalog
    sandbox: str
    place: Place

    def durable(self, node: str = "a") -> DurableState:
        return DurableState(self.catalog.sandboxes, TENANT, self.sandbox, NodeRef(node, f"cluster-{node}"), LifeCycle())

    def owner(self, node: str = "a") -> DurableState:
        durable = self.durable(node)
        durable.acquire_epoch(durable.find(), lambda state: state)
        return durable

    def ownership(self, node: str = "a", *, record: Record | None = None, lost: tuple[str, ...] = ()) -> Ownership:
        return Ownership(
            self.catalog,
            TENANT,
            self.sandbox,
            NodeRef(node, f"cluster-{node}"),
            record=lambda: record or Record(created_at=NOW),
            is_lost=lambda identity, _: identity in lost,
        )

    @property
    def stored(self) -> SandboxState:
        found = self.catalog.sandboxes.find_state(TENANT, self.sandbox)
        assert found is not None
        return found.state

    @property
    def bytes(self) -> bytes:
        return self.faulty.inner.get(keys.state(TENANT, self.sandbox)).data

    def rewrite(self, change: Callable[[SandboxState], SandboxState]) -> None:
        """Writes the state as a process that is not its actor."""
        found = self.catalog.sandboxes.find_state(TENANT, self.sandbox)
        assert found is not None
        self.catalog.sandboxes.write_state(change(found.state), replacing=found.etag)

    def record(self, directory: str = "/workspace", *, of_sleep: bool = False, partial: bool = False) -> BackupRecord:
        return BackupRecord(
            id=str(uuid.uuid4()),
            dir=directory,
            size_bytes=7,
            ttl=3600,
            created_at=NOW,
            version=1,
            tenant=TENANT,
            sandbox=self.sandbox,
            of_sleep=of_sleep or None,
            partial=partial or None,
        )

    def upload(self, record: BackupRecord) -> None:
        self.faulty.inner.put(keys.archive(record.id), b"archive")

    def has(self, key: str) -> bool:
        try:
            self.faulty.inner.head(key)
        except ObjectMissingError:
            return False
        return True


@pytest.fixture
def world(place_of_documents: Place) -> World:
    faulty = FaultyStore(place_of_documents.store)
    return World(faulty, BackupCatalog(faulty, SecretStr("key")), f"sb-{uuid.uuid4().hex}", place_of_documents)


def labelled(**labels: str) -> Callable[[SandboxState], SandboxState]:
    return lambda state: state.model_copy(update={"labels": {**state.labels, **labels}})


def noted(kind: str) -> Callable[[SandboxState], SandboxState]:
    return lambda state: happened(state, kind)


def kinds(state: SandboxState | None) -> list[str]:
    assert state is not None
    return [event.kind for event in state.events]


def checkpoint(directory: str, *, of_sleep: bool = False) -> Checkpoint:
    return Checkpoint(dir=directory, backup_id=str(uuid.uuid4()), taken_at=NOW, of_sleep=of_sleep)


# --- the state


def test_epochs_rise_by_one_with_each_actor(world: World) -> None:
    epochs = []
    for node in ("a", "b", "a"):
        world.owner(node)
        epochs.append((world.stored.epoch, world.stored.node, world.stored.cluster_node))
    assert epochs == [(1, "a", "cluster-a"), (2, "b", "cluster-b"), (3, "a", "cluster-a")]


def test_the_first_epoch_keeps_the_labels_and_age_of_a_recorded_sandbox(world: World) -> None:
    made = SandboxState(id=world.sandbox, tenant=TENANT, created_at=NOW - timedelta(days=1), labels={"a": "1"})
    world.catalog.sandboxes.write_state(made, replacing=None)
    world.owner()
    assert (world.stored.created_at, world.stored.labels, world.stored.epoch) == (made.created_at, {"a": "1"}, 1)


def test_a_superseded_actor_can_write_nothing(world: World) -> None:
    old = world.owner("a")
    world.owner("b")
    before = world.bytes
    with pytest.raises(SupersededError):
        old.change(noted("late"))
    assert old.is_superseded
    with pytest.raises(SupersededError):
        old.change(noted("later"))
    with pytest.raises(SupersededError):
        old.check()
    with pytest.raises(SupersededError):
        old.forget(lambda state: None)
    assert world.bytes == before


@pytest.mark.parametrize("act", ["check", "forget", "acquire_epoch"])
def test_each_operation_alone_detects_a_newer_actor(world: World, act: str) -> None:
    old = world.owner("a")
    found = old.find()
    world.owner("b")
    before = world.bytes
    with pytest.raises(SupersededError):
        if act == "check":
            old.check()
        elif act == "forget":
            old.forget(lambda state: pytest.fail("nothing may be deleted"))
        else:
            old.acquire_epoch(found, lambda state: state)
    assert old.is_superseded
    assert world.bytes == before


def test_of_two_actors_that_claim_an_epoch_from_the_same_state_one_fails(world: World) -> None:
    world.owner("lost")
    one, other = world.durable("a"), world.durable("b")
    seen_by_one, seen_by_other = one.find(), other.find()
    one.acquire_epoch(seen_by_one, lambda state: state)
    with pytest.raises(SupersededError):
        other.acquire_epoch(seen_by_other, lambda state: state)
    assert (world.stored.node, world.stored.epoch) == ("a", 2)


def test_an_actor_does_not_recreate_a_sandbox_that_was_destroyed_elsewhere(world: World) -> None:
    old = world.owner()
    world.catalog.sandboxes.delete_state(TENANT, world.sandbox)
    with pytest.raises(SupersededError):
        old.change(noted("late"))
    assert not world.has(keys.state(TENANT, world.sandbox))


def test_labels_changed_by_others_survive_the_actors_writes(world: World) -> None:
    durable = world.owner()
    world.rewrite(labelled(by="a person"))
    durable.change(noted("backed_up"))
    assert world.stored.labels == {"by": "a person"}
    world.rewrite(labelled(by="another"))
    durable.change(noted("restored"))
    assert world.stored.labels == {"by": "another"}
    assert kinds(world.stored) == ["backed_up", "restored"]


def test_labels_changed_before_the_epoch_is_claimed_survive(world: World) -> None:
    world.owner("a")
    durable = world.durable("b")
    found = durable.find()
    world.rewrite(labelled(by="a person"))
    durable.acquire_epoch(found, noted("woke"))
    assert (world.stored.labels, world.stored.epoch) == ({"by": "a person"}, 2)


@pytest.mark.parametrize("act", ["acquire_epoch", "change", "forget"])
@pytest.mark.parametrize("after", [False, True])
def test_a_write_whose_answer_is_lost_is_settled_or_can_be_repeated(world: World, act: str, *, after: bool) -> None:
    durable = world.durable() if act == "acquire_epoch" else world.owner()

    def call() -> None:
        if act == "acquire_epoch":
            durable.acquire_epoch(durable.find(), noted("woke"))
        elif act == "change":
            durable.change(noted("backed_up"))
        else:
            durable.forget(lambda state: None)

    world.faulty.fail("delete" if act == "forget" else "put", "state.json", after=after)
    if after and act != "forget":
        call()
    else:
        with pytest.raises(StorageError):
            call()
        call()
    if act == "forget":
        assert not world.has(keys.state(TENANT, world.sandbox))
        assert durable.state is None
    else:
        assert durable.state is not None and world.bytes == durable.state.to_json()
        durable.change(noted("next"))
        assert world.stored.epoch == 1


def test_an_epoch_whose_claim_cannot_be_settled_is_claimed_again(world: World) -> None:
    durable = world.durable()
    found = durable.find()
    world.faulty.fail("put", "state.json", after=True)
    world.faulty.fail("get", "state.json", after=False)
    if not world.place.conditional_writes:
        world.faulty.fail("get", "state.json", after=False)  # the read before the write
    with pytest.raises(StoreUnavailableError):
        durable.acquire_epoch(found, lambda state: state)
    world.faulty.faults.clear()
    assert durable.state is None
    durable.acquire_epoch(durable.find(), lambda state: state)
    durable.change(noted("next"))
    assert kinds(world.stored) == ["next"]


@pytest.mark.parametrize("after", [False, True])
def test_a_change_that_could_not_be_written_is_written_with_the_next(world: World, *, after: bool) -> None:
    durable = world.owner()
    unsettled(world, after=after)
    with pytest.raises(StoreUnavailableError):
        durable.change(noted("first"))
    assert durable.is_behind
    world.faulty.faults.clear()
    durable.change(noted("second"))
    assert kinds(world.stored) == ["first", "second"]
    assert not durable.is_behind


@pytest.mark.parametrize("after", [False, True])
def test_a_failed_change_with_keep_false_is_undone_by_the_next(world: World, *, after: bool) -> None:
    durable = world.owner()
    unsettled(world, after=after)
    with pytest.raises(StoreUnavailableError):
        durable.change(noted("first"), keep=False)
    world.faulty.faults.clear()
    assert kinds(durable.state) == []
    durable.change(noted("second"))
    assert kinds(world.stored) == ["second"]


def unsettled(world: World, *, after: bool) -> None:
    """Makes the next write of the state fail, and so the reading back."""

    real = world.faulty.inner

    class Broken:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def put(self, key: str, *args: object, **options: object) -> str:
            if after:
                real.put(key, *args, **options)  # type: ignore[arg-type]
            world.faulty.inner = real
            world.faulty.fail("get", "state.json", after=False)
            raise StoreUnavailableError("put", bucket="b", key=key)

    world.faulty.inner = Broken()  # type: ignore[assignment]


def test_many_threads_lose_no_change(world: World) -> None:
    durable = world.owner()
    threads = [threading.Thread(target=durable.change, args=(noted(f"event-{n}"),)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kinds(world.stored)) == sorted(f"event-{n}" for n in range(12))


def test_only_the_latest_events_are_kept() -> None:
    state = SandboxState(id="box", tenant=TENANT, created_at=NOW)
    for number in range(MAX_EVENTS + 20):
        state = happened(state, f"event-{number}")
    assert len(state.events) == MAX_EVENTS
    assert (state.events[0].kind, state.events[-1].kind) == ("event-20", f"event-{MAX_EVENTS + 19}")


@pytest.mark.parametrize(
    ("covers_all", "left"),
    [
        (True, ["/workspace-two", "/workspace"]),
        (False, ["/workspace/a", "/workspace/a/b", "/workspace-two", "/workspace"]),
    ],
)
def test_a_checkpoint_replaces_those_inside_it_unless_it_is_partial(covers_all: bool, left: list[str]) -> None:
    state = SandboxState(id="box", tenant=TENANT, created_at=NOW)
    for directory in ("/workspace", "/workspace/a", "/workspace/a/b", "/workspace-two"):
        state = with_checkpoint(state, checkpoint(directory))
    newest = checkpoint("/workspace")
    state = with_checkpoint(state, newest, covers_all=covers_all)
    assert [row.dir for row in state.checkpoints] == left
    assert state.checkpoints[-1] == newest


def test_the_state_lists_a_limited_number_of_directories() -> None:
    state = SandboxState(id="box", tenant=TENANT, created_at=NOW)
    entries = []
    for number in range(MAX_ROWS + 5):
        state = with_checkpoint(state, checkpoint(f"/workspace/{number}"))
        entries.append(Entry(dir=f"/workspace/{number}", backup_id=str(uuid.uuid4()), mode="copy", restored_at=NOW))
    rows = restored_in(Record(created_at=NOW, entries=tuple(entries)))
    for listed in (state.checkpoints, rows):
        assert [row.dir for row in listed] == [f"/workspace/{number}" for number in range(5, MAX_ROWS + 5)]


def test_the_largest_state_can_be_read() -> None:
    long = "/workspace/" + "\x01" * 4085
    row = checkpoint(long)
    restored = Entry(dir=long, backup_id=row.backup_id, mode="overlay", restored_at=NOW)
    state = SandboxState(
        id="b" * 128,
        tenant="t" * 128,
        created_at=NOW,
        checkpoints=[row] * MAX_ROWS,
        restored=restored_in(Record(created_at=NOW, entries=(restored,) * MAX_ROWS)),
    )
    for _ in range(MAX_EVENTS):
        state = happened(state, "backed_up", dir=long, backup_id=row.backup_id)
    lost = RecoveredDirectory(dir=long, backup_id=row.backup_id, taken_at=NOW)
    state = state.model_copy(update={"recovery": Recovery(at=NOW, directories=[lost] * MAX_ROWS)})
    assert len(state.to_json()) < STATE_BYTES


# --- ownership


def opened(ownership: Ownership, *, has_record: bool = True) -> Ownership:
    ownership.locate(has_record=has_record)
    ownership.life.move(Life.AWAKE)
    return ownership


def test_the_epoch_is_claimed_by_the_first_change_or_in_the_background(world: World) -> None:
    ownership = opened(world.ownership())
    assert not world.has(keys.state(TENANT, world.sandbox))
    ownership.change(noted("first"))
    assert kinds(world.stored) == ["created", "first"]
    again = opened(world.ownership())
    again.acquire_epoch_in_background()
    assert wait_until(lambda: world.stored.epoch == 2)
    assert kinds(world.stored) == ["created", "first", "woke"]


@pytest.mark.parametrize(
    "claim", [Ownership.acquire_epoch_in_background, lambda ownership: ownership.change(noted("used"))]
)
def test_unsaved_roots_that_are_noted_while_the_epoch_is_claimed_are_written_after_it(
    world: World, claim: Callable[[Ownership], None]
) -> None:
    held = HeldStore(world.faulty, "put", "state.json")
    ownership = opened(replace(world, catalog=BackupCatalog(held, SecretStr("key"))).ownership())
    ownership.note_unsaved([])
    claiming = Background(lambda: claim(ownership))
    held.wait()
    ownership.note_unsaved(["/workspace"])
    held.released.set()
    claiming.result()
    assert wait_until(lambda: world.has(keys.state(TENANT, world.sandbox)))
    assert wait_until(lambda: world.stored.unsaved == ["/workspace"])


@pytest.mark.parametrize("is_pending", [False, True])
def test_the_first_change_is_written_with_the_claim_unless_a_backup_has_to_be_settled(
    world: World, *, is_pending: bool
) -> None:
    if is_pending:
        SandboxLedger(opened(world.ownership())).begin(str(uuid.uuid4()), of_sleep=False)
    ownership = opened(world.ownership())
    world.faulty.calls.clear()
    ownership.change(noted("first"))

    assert kinds(world.stored).count("first") == 1 and not world.stored.pending
    written = world.faulty.calls.count(f"put {keys.state(TENANT, world.sandbox)}")
    assert written == (3 if is_pending else 1)


def test_a_supposed_state_saves_a_read_but_is_checked_at_the_first_write(world: World) -> None:
    world.owner("a")
    found = StateRead(world.catalog.sandboxes.find_state(TENANT, world.sandbox))
    ownership = world.ownership("a")
    world.faulty.fail("get", "state.json", after=False)
    ownership.suppose(found)
    world.faulty.calls.clear()
    assert ownership.locate(has_record=True) is Origin.HERE
    assert world.faulty.calls == []
    world.faulty.faults.clear()
    world.owner("b")
    with pytest.raises(SandboxUnavailableError) as raised:
        ownership.change(noted("late"))
    assert raised.value.context["reason"] == "SUPERSEDED"
    assert (world.stored.node, world.stored.epoch) == ("b", 2)


def test_a_supposed_state_is_ignored_after_locating(world: World) -> None:
    world.owner("a")
    ownership = opened(world.ownership("a"))
    ownership.suppose(StateRead(None))
    ownership.change(lambda state: state)
    assert (world.stored.epoch, kinds(world.stored)) == (2, ["woke"])


def test_a_new_recorded_sandbox_begins_afresh_under_its_first_epoch(world: World) -> None:
    made = SandboxState(id=world.sandbox, tenant=TENANT, created_at=NOW)
    etag = world.catalog.sandboxes.write_state(made, replacing=None)
    ownership = world.ownership("a")
    ownership.suppose(StateRead(StoredState(made, etag)))
    assert ownership.locate(has_record=False) is Origin.AFRESH
    ownership.change(lambda state: state)
    assert (world.stored.node, world.stored.epoch, kinds(world.stored)) == ("a", 1, ["created"])


def test_late_writes_do_not_recreate_a_destroyed_sandbox(world: World) -> None:
    ownership = opened(world.ownership())
    ownership.change(noted("first"))
    ownership.forget()
    ownership._catching_up.step()
    ownership.report(noted("slept"))
    with pytest.raises(SandboxUnavailableError):
        ownership.change(noted("late"))
    assert not world.has(keys.state(TENANT, world.sandbox))
    assert not ownership.is_superseded
    opened(ownership, has_record=False).change(noted("anew"))
    assert (kinds(world.stored), world.stored.epoch) == (["created", "anew"], 1)


def test_a_sandbox_that_was_never_located_reports_nothing(world: World) -> None:
    world.ownership().report(noted("slept"))
    assert not world.has(keys.state(TENANT, world.sandbox))


@pytest.mark.parametrize("of_sleep", [False, True])
def test_a_pending_backup_is_settled_by_the_next_owner(world: World, *, of_sleep: bool) -> None:
    old = opened(world.ownership("a"))
    committed, open_one = world.record("/workspace", of_sleep=of_sleep), world.record("/app")
    for record in (committed, open_one):
        SandboxLedger(old).begin(record.id, of_sleep=of_sleep)
        world.upload(record)
    world.catalog.commit(committed)
    new = world.ownership("b", lost=("a",))
    assert new.locate(has_record=False) is Origin.LOSS
    lost_node, state = new.acquire_epoch()
    assert lost_node == "a"
    assert [(row.dir, row.backup_id, row.of_sleep) for row in state.checkpoints] == [
        ("/workspace", committed.id, of_sleep)
    ]
    assert state.pending == [] and state.to_json() == world.bytes
    assert not world.has(keys.archive(open_one.id))
    with pytest.raises(SandboxUnavailableError) as raised:
        SandboxLedger(old).abandoned(open_one.id)
    assert raised.value.context["reason"] == "SUPERSEDED"
    SandboxLedger(old).committed(committed)
    assert world.bytes == state.to_json()
    new.clear_sleep()
    new.forget()
    assert world.has(keys.metadata(committed.id)) is not of_sleep


@pytest.mark.parametrize("partial", [False, True])
def test_a_settled_backup_replaces_checkpoints_inside_it_unless_it_is_partial(world: World, *, partial: bool) -> None:
    old = opened(world.ownership("a"))
    inside, outer = world.record("/workspace/a"), world.record("/workspace", partial=partial)
    for record in (inside, outer):
        SandboxLedger(old).begin(record.id, of_sleep=False)
        world.upload(record)
        world.catalog.commit(record)
        if record is inside:
            SandboxLedger(old).committed(record)
    new = world.ownership("b", lost=("a",))  # the old actor died between the commit and the checkpoint
    new.locate(has_record=False)
    _, state = new.acquire_epoch()
    assert [row.dir for row in state.checkpoints] == (["/workspace/a", "/workspace"] if partial else ["/workspace"])


def test_a_settled_backup_keeps_later_restores_inside_it(world: World) -> None:
    old, outer = opened(world.ownership("a")), world.record("/workspace")
    SandboxLedger(old).begin(outer.id, of_sleep=False)
    world.upload(outer)
    world.catalog.commit(outer)
    since = NOW + timedelta(minutes=1)
    inside = Entry(dir="/workspace/src", backup_id=str(uuid.uuid4()), mode="overlay", restored_at=since)
    before = Entry(dir="/workspace/old", backup_id=str(uuid.uuid4()), mode="overlay", restored_at=NOW)
    new = opened(world.ownership("a", record=Record(created_at=NOW, entries=(before, inside))))
    new.change(noted("later"))
    rows = {row.dir: row.backup_id for row in world.stored.checkpoints}
    assert rows == {"/workspace": outer.id, "/workspace/src": inside.backup_id}


def test_a_takeover_fails_until_all_pending_backups_are_settled(world: World) -> None:
    old, record = opened(world.ownership("a")), world.record()
    SandboxLedger(old).begin(record.id, of_sleep=False)
    world.upload(record)
    new = world.ownership("b", lost=("a",))
    new.locate(has_record=False)
    world.faulty.fail("delete", "data.sqsh", after=False)
    with pytest.raises(StorageError):
        new.acquire_epoch()
    assert world.stored.pending == [record.id]
    assert new.locate(has_record=False) is Origin.LOSS
    assert new.acquire_epoch()[0] == "a"
    assert world.stored.pending == []
    assert not world.has(keys.archive(record.id))


@pytest.mark.parametrize("slept", [False, True])
def test_after_an_interrupted_takeover_the_node_with_the_files_is_still_known(world: World, *, slept: bool) -> None:
    first = opened(world.ownership("a"))
    if slept:
        first.sleep([checkpoint("/workspace", of_sleep=True)])
    else:
        first.change(noted("backed_up"))
    expected = None if slept else "a"
    for _ in range(2):  # each owner dies right after its takeover
        next_one = world.ownership("b", lost=("a",))
        next_one.locate(has_record=False)
        assert next_one.acquire_epoch()[0] == expected
    third = world.ownership("c", lost=("b",))
    third.locate(has_record=False)
    assert third.acquire_epoch()[0] == "b"


def test_a_lost_disk_is_told_apart_from_an_interrupted_recovery(world: World) -> None:
    opened(world.ownership("a")).change(noted("backed_up"))
    again = world.ownership("a")
    assert again.locate(has_record=False) is Origin.LOSS
    assert again.acquire_epoch()[0] == "a"


def test_changes_that_the_last_actor_did_not_report_are_read_from_the_nodes_record(world: World) -> None:
    lost = RecoveryItem(dir="/app", backup_id=str(uuid.uuid4()), taken_at=NOW, settled=True, error="BACKUP_EXPIRED")
    back = RecoveryItem(dir="/workspace", backup_id=str(uuid.uuid4()), taken_at=NOW, settled=True)
    record = Record(
        created_at=NOW,
        entries=(Entry(dir="/workspace", backup_id=back.backup_id, mode="copy", restored_at=NOW, taken_at=NOW),),
        recovery=RecoveryPlan(at=datetime.now(UTC), lost_node="x", directories=(lost, back)),
    )
    world.ownership("a")
    for _ in range(2):
        opened(world.ownership("a", record=record)).change(noted("used"))
    assert kinds(world.stored) == ["recovered", "used", "woke", "used"]
    assert [row.dir for row in world.stored.checkpoints] == ["/workspace"]
    assert [row.dir for row in world.stored.restored] == ["/workspace"]
    recovery = world.stored.recovery
    assert recovery is not None and recovery.lost_node == "x"
    assert [(row.dir, row.error) for row in recovery.directories] == [("/app", "BACKUP_EXPIRED"), ("/workspace", None)]


def test_a_failed_sleep_changes_nothing(world: World) -> None:
    ownership = opened(world.ownership("a"))
    ownership.change(noted("used"))
    unsettled(world, after=True)
    with pytest.raises(StorageError):
        ownership.sleep([checkpoint("/workspace", of_sleep=True)])
    world.faulty.faults.clear()
    assert world.stored.node is None
    assert world.ownership("a").locate(has_record=True) is Origin.HERE
    assert ownership.locate(has_record=True) is Origin.HERE
    ownership.acquire_epoch_in_background()
    assert wait_until(lambda: world.stored.node == "a")
    assert (world.stored.checkpoints, world.stored.slept_on) == ([], None)


def test_the_actor_that_put_its_sandbox_to_sleep_wakes_it_under_a_new_epoch(world: World) -> None:
    ownership = opened(world.ownership("a"))
    ownership.sleep([checkpoint("/workspace", of_sleep=True)])
    ownership._catching_up.step()
    assert (world.stored.node, world.stored.epoch) == (None, 1)
    assert ownership.locate(has_record=False) is Origin.SLEEP
    assert ownership.acquire_epoch()[0] is None
    assert (world.stored.node, world.stored.slept_on, world.stored.epoch) == ("a", None, 2)


class CountingLock:
    """A lock that counts the requests for it."""

    def __init__(self) -> None:
        self.requests = 0
        self._lock = threading.RLock()
        self.release = self._lock.release

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self.requests += 1
        return self._lock.acquire(blocking, timeout)


def test_no_epoch_is_claimed_while_a_sleep_is_being_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldStore(world.faulty, "put", "state.json", nth=2)
    ownership = opened(replace(world, catalog=BackupCatalog(held, SecretStr("key"))).ownership("a"))
    turns = CountingLock()
    monkeypatch.setattr(ownership._durable, "_lock", turns)
    ownership.change(noted("used"))
    sleeping = Background(lambda: ownership.sleep([checkpoint("/workspace", of_sleep=True)]))
    held.wait()
    before = turns.requests
    catching_up = Background(ownership._catching_up.step)
    late = Background(lambda: ownership.change(noted("late")))
    assert catching_up.error() is None  # a sandbox that leaves lacks nothing
    assert wait_until(lambda: turns.requests == before + 1), "the late change waits for its turn"
    held.released.set()
    sleeping.result()
    assert isinstance(late.error(), SandboxUnavailableError)
    assert kinds(world.stored) == ["created", "used", "slept"]
    assert (world.stored.node, world.stored.slept_on, world.stored.epoch) == (None, "a", 1)


def restored(directory: str, *, ago_s: float = 0) -> Entry:
    restored_at = datetime.now(UTC) - timedelta(seconds=ago_s)
    return Entry(dir=directory, backup_id=str(uuid.uuid4()), mode="overlay", restored_at=restored_at)


def test_checkpoints_of_a_sleep_are_newer_than_the_nodes_record(world: World) -> None:
    entries = (restored("/workspace", ago_s=1), restored("/workspace/src", ago_s=1))
    ownership = opened(world.ownership("a", record=Record(created_at=NOW, entries=entries)))
    in_bed = checkpoint("/workspace", of_sleep=True)
    ownership.sleep([in_bed])  # and dies before the files are removed
    again = opened(world.ownership("a", record=Record(created_at=NOW, entries=entries)))
    again.change(noted("used"))
    assert world.stored.checkpoints == [in_bed]
    assert [row.dir for row in world.stored.restored] == ["/workspace", "/workspace/src"]
    last = opened(world.ownership("a", record=Record(created_at=NOW, entries=(*entries, restored("/app")))))
    last.change(noted("used"))
    assert [row.dir for row in world.stored.checkpoints] == ["/workspace", "/app"]


@pytest.mark.parametrize("after", [False, True])
def test_a_sleep_with_unknown_outcome_must_be_undone_before_the_next(world: World, *, after: bool) -> None:
    ownership = opened(world.ownership("a"))
    assert not ownership.is_recorded
    ownership.change(noted("used"))
    assert ownership.is_recorded
    unsettled(world, after=after)
    with pytest.raises(StorageError):
        ownership.sleep([checkpoint("/workspace", of_sleep=True)])
    assert not ownership.is_recorded
    world.faulty.faults.clear()
    assert ownership.locate(has_record=True) is Origin.HERE
    unsettled(world, after=False)
    with pytest.raises(StorageError):
        ownership.change(noted("used"))
    assert not ownership.is_recorded
    world.faulty.faults.clear()
    ownership.change(noted("used"))
    assert ownership.is_recorded
    assert world.stored.node == "a"


def test_a_backup_committed_while_its_sandbox_closes_is_settled_before_the_next(world: World) -> None:
    ownership = opened(world.ownership("a"))
    first, second = world.record(), world.record()
    for record in (first, second):
        SandboxLedger(ownership).begin(record.id, of_sleep=False)
        world.upload(record)
        world.catalog.commit(record)
        if record is first:
            ownership.close()
        SandboxLedger(ownership).committed(record)
        ownership.locate(has_record=True)
    assert world.stored.pending == []
    assert [row.backup_id for row in world.stored.checkpoints] == [second.id]
    assert [event.backup_id for event in world.stored.events if event.kind == "backed_up"] == [first.id, second.id]


def test_a_restore_that_could_not_be_reported_is_reported_with_the_next_change(world: World) -> None:
    entry = restored("/workspace")
    record = Record(created_at=NOW, entries=(entry,))
    ownership = opened(world.ownership("a"))
    left = world.record("/app")
    SandboxLedger(ownership).begin(left.id, of_sleep=False)
    ownership.leave_behind(left.id)
    world.faulty.fail("get", keys.metadata(left.id), after=False)
    ownership.report(lambda state: after_restore(state, record, entry))
    assert world.stored.checkpoints == []
    ownership.change(noted("used"))
    assert [row.backup_id for row in world.stored.checkpoints] == [entry.backup_id]
    assert "restored" in kinds(world.stored)


def test_reports_in_the_wrong_order_keep_the_last_restore(world: World) -> None:
    first, last = restored("/workspace"), restored("/workspace")
    record = Record(created_at=NOW, entries=(last,))  # the record at the time when both reports are written
    ownership = opened(world.ownership("a", record=record))
    for entry in (last, first):
        ownership.change(lambda state, entry=entry: after_restore(state, record, entry))  # type: ignore[misc]
    assert [row.backup_id for row in world.stored.checkpoints] == [last.backup_id]


def test_late_labels_replace_no_newer_ones(world: World) -> None:
    ownership = opened(world.ownership("a"))
    ownership.relabel()  # has no epoch yet
    ownership.change(noted("used"))
    world.rewrite(labelled(of="first"))
    world.rewrite(labelled(of="second"))
    ownership.change(noted("used"))
    ownership.relabel()  # the late notice of the first rewrite
    ownership.change(noted("used"))
    assert world.stored.labels == {"of": "second"}
    world.rewrite(labelled(of="third"))
    ownership.relabel()
    assert ownership.last_known is not None and ownership.last_known.labels == {"of": "third"}
    world.faulty.fail("get", "state.json", after=False)
    ownership.relabel()
    world.owner("b")
    ownership.relabel()
    assert ownership.is_superseded


@pytest.mark.parametrize("arrives", [False, True])
def test_a_sleep_whose_answer_comes_late_is_undone(world: World, *, arrives: bool) -> None:
    late = LateStore(world.faulty, "state.json", nth=2)
    catalog = BackupCatalog(cast(ObjectStore, late), SecretStr("key"))
    ownership = opened(replace(world, catalog=catalog).ownership("a"))
    ownership.change(lambda state: state)
    with pytest.raises(StorageError):
        ownership.sleep([checkpoint("/workspace", of_sleep=True)])
    assert "slept" not in kinds(world.stored)
    if arrives:
        late.arrive()
        assert (world.stored.node, kinds(world.stored)[-1]) == (None, "slept")
    assert ownership.locate(has_record=True) is Origin.HERE
    assert not ownership.is_recorded
    ownership.change(noted("used"))
    assert ownership.is_recorded
    assert (world.stored.node, world.stored.checkpoints) == ("a", [])
    assert kinds(world.stored)[-1] == "used"


@contextmanager
def bucket_hangs(ownership: Ownership) -> Iterator[None]:
    """Another thread has the state's turn within the block, as if it waited for a bucket that hangs."""
    durable = ownership._durable
    assert durable is not None
    has_turn, ends = threading.Event(), threading.Event()

    def wait() -> None:
        with durable.turn():
            has_turn.set()
            assert ends.wait(30)

    waiting = Background(wait)
    assert has_turn.wait(30)
    try:
        yield
    finally:
        ends.set()
        waiting.result()


def test_a_sleep_that_gets_no_turn_in_time_writes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.time_limit.MOMENTS_S", 0.2)
    ownership = opened(world.ownership("a"))
    ownership.change(lambda state: state)
    before = world.bytes
    with bucket_hangs(ownership), pytest.raises(StorageError):
        ownership.sleep([checkpoint("/workspace", of_sleep=True)])
    assert ownership.locate(has_record=True) is Origin.HERE
    assert ownership.is_recorded
    assert world.bytes == before


def test_a_report_that_gets_no_turn_in_time_is_written_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.time_limit.MOMENTS_S", 0.2)
    ownership = opened(world.ownership("a"))
    ownership.change(noted("used"))
    with bucket_hangs(ownership):
        ownership.report(noted("first"))
        ownership.report(noted("second"))
        assert kinds(world.stored) == ["created", "used"]
    assert wait_until(lambda: kinds(world.stored) == ["created", "used", "first", "second"])


def test_closing_waits_only_moments_for_a_claim_under_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.time_limit.MOMENTS_S", 0.2)
    ownership = opened(world.ownership("a"))
    with bucket_hangs(ownership):
        late = Background(lambda: ownership.change(noted("late")))
        ownership.close()
    assert isinstance(late.error(), SupersededError)
    assert not world.has(keys.state(TENANT, world.sandbox))


def test_undoing_a_change_does_not_undo_labels(world: World) -> None:
    def fails() -> None:
        raise StoreUnavailableError("put", bucket="b")

    # Write 1 claims the epoch. With conditional writes, write 2 fails because the labels have changed.
    nth = 3 if world.place.conditional_writes else 2
    store = Interrupted(world.faulty, "put", "before", nth, of="state.json", act=fails)
    owner = replace(world, catalog=BackupCatalog(cast(ObjectStore, store), SecretStr("key"))).owner()
    world.rewrite(labelled(of="somebody else"))
    with pytest.raises(StorageError):
        owner.change(noted("begun"), keep=False)
    owner.change(noted("later"))
    assert world.stored.labels == {"of": "somebody else"}
    assert kinds(world.stored) == ["later"]


def test_a_report_does_not_include_a_later_restore(world: World) -> None:
    first, second = restored("/workspace"), restored("/app")
    record = Record(created_at=NOW, entries=(first, second))
    ownership = opened(world.ownership("a"))
    ownership.change(lambda state: after_restore(state, record, first))  # and dies before it reports the second
    assert [row.dir for row in world.stored.restored] == ["/workspace"]
    opened(world.ownership("a", record=record)).change(noted("used"))
    assert {row.dir: row.backup_id for row in world.stored.checkpoints} == {
        "/workspace": first.backup_id,
        "/app": second.backup_id,
    }


def test_backups_of_a_sleep_are_deleted_when_they_are_no_longer_needed(world: World) -> None:
    ownership = opened(world.ownership("a"))
    made = []
    for _ in range(3):
        record = world.record(of_sleep=True)
        ledger = SandboxLedger(ownership)
        ledger.begin(record.id, of_sleep=True)
        world.upload(record)
        world.catalog.commit(record)
        ledger.committed(record)
        made.append(record)
    ownership.clear_sleep()
    assert [world.has(keys.metadata(record.id)) for record in made] == [False, False, True]
    assert world.stored.sleep_backups == [made[2].id]
    ownership.clear_sleep()
    world.faulty.fail("delete", "state.json", after=False)
    with pytest.raises(StorageError):
        ownership.forget()
    ownership.forget()
    assert not world.has(keys.metadata(made[2].id))


def test_a_late_claim_of_an_epoch_is_refused_if_another_actor_has_taken_over(world: World) -> None:
    world.owner("a")
    late = world.ownership("a")
    world.faulty.fail("get", "state.json", after=False)
    assert late.locate(has_record=True) is Origin.HERE
    world.owner("b")
    late.acquire_epoch_in_background()
    assert wait_until(lambda: late.is_superseded)
    with pytest.raises(SandboxUnavailableError) as raised:
        late.locate(has_record=True)
    assert raised.value.context["reason"] == "SUPERSEDED"
    assert (world.stored.node, world.stored.epoch) == ("b", 2)


def test_an_outdated_read_does_not_allow_an_epoch_to_be_claimed(world: World) -> None:
    world.owner("a")
    late = opened(world.ownership("a"))  # has read the state, but claims its epoch later
    world.owner("b")
    with pytest.raises(SandboxUnavailableError):
        late.change(noted("late"))
    assert (world.stored.node, world.stored.epoch) == ("b", 2)
