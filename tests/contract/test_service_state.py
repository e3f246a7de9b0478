"""The service's reads and writes of a sandbox's state, while other processes write to the same bucket."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from actors.config import NodeConfig, SandboxConfig
from actors.errors import InvalidRequestError, SandboxNotFoundError, StorageUnavailableError
from actors.service.facade import Service
from storage import keys
from storage.catalog import BackupCatalog
from storage.errors import StoreUnavailableError
from storage.metadata import BackupRecord, Checkpoint, Event, RecoveredDirectory, Recovery, SandboxState, StoredLayer
from storage.sandbox_documents import SandboxDocuments, StoredState
from storage.store import ObjectStore
from tests.contract.conftest import Place
from tests.support.s3 import FAST

NOW = datetime.now(UTC).replace(microsecond=0)
A, B = str(uuid.uuid4()), str(uuid.uuid4())


class Bucket:
    """A service over a store, and a catalog over the same store for other processes."""

    def __init__(self, place: Place) -> None:
        self.config = SandboxConfig(
            node=NodeConfig(data_dir=Path("/nowhere")),
            transfer=FAST,
            bucket=place.server,
            signing_key=SecretStr("signing key"),
        )
        self.catalog = BackupCatalog(place.store, SecretStr("signing key"))
        self.box = f"box-{uuid.uuid4().hex[:12]}"
        self.service = self.over(self.catalog)

    def over_documents(self, documents: SandboxDocuments) -> Service:
        catalog = BackupCatalog(self.catalog.store, SecretStr("signing key"))
        catalog.sandboxes = documents
        return self.over(catalog)

    def over(self, catalog: BackupCatalog) -> Service:
        return Service(self.config, catalog, awake=lambda tenant, sandboxes: ())

    def state(self) -> SandboxState:
        found = self.catalog.sandboxes.find_state("acme", self.box)
        assert found is not None
        return found.state

    def write(self, **fields: object) -> SandboxState:
        """Writes the sandbox's state, as its actor does."""
        found = self.catalog.sandboxes.find_state("acme", self.box)
        made = found.state if found else SandboxState(id=self.box, tenant="acme", created_at=NOW)
        state = made.model_copy(update=fields)
        self.catalog.sandboxes.write_state(state, replacing=found.etag if found else None)
        return state


@pytest.fixture
def bucket(place_of_documents: Place) -> Bucket:
    return Bucket(place_of_documents)


class Interrupted(SandboxDocuments):
    """Documents of which `meanwhile` runs between each read of a state and the write that follows."""

    def __init__(self, store: ObjectStore, meanwhile: Callable[[], object]) -> None:
        super().__init__(store, lambda: NOW)
        self._meanwhile = meanwhile

    def find_state(self, tenant: str, sandbox: str) -> StoredState | None:
        found = super().find_state(tenant, sandbox)
        self._meanwhile()
        return found


def test_setting_labels_changes_nothing_else_in_the_state(bucket: Bucket) -> None:
    before = bucket.write(
        epoch=7,
        last_used_at=NOW,
        node="n",
        labels={"old": "1", "stays": "2"},
        checkpoints=[Checkpoint(dir="/workspace", backup_id=A, taken_at=NOW)],
        events=[Event(kind="created", at=NOW)],
    )
    assert bucket.service.change_labels("acme", bucket.box, {"new": "3"}, ["old", "never"]) == {
        "stays": "2",
        "new": "3",
    }
    assert bucket.state() == before.model_copy(update={"labels": {"stays": "2", "new": "3"}})
    assert bucket.service.set_labels("acme", bucket.box, {}) == {}
    assert bucket.state() == before.model_copy(update={"labels": {}})


def test_setting_labels_creates_the_sandbox(bucket: Bucket) -> None:
    assert bucket.service.set_labels("acme", bucket.box, {"a": "1"}) == {"a": "1"}
    assert (bucket.state().epoch, bucket.state().labels) == (0, {"a": "1"})
    info = bucket.service.describe("acme", bucket.box)
    assert (info.labels, info.running, info.epoch) == ({"a": "1"}, False, 0)
    with pytest.raises(SandboxNotFoundError):
        bucket.service.describe("other", bucket.box)
    created = bucket.service.create_sandbox("acme", {"b": "2"})
    assert bucket.service.describe("acme", created).labels == {"b": "2"}
    assert bucket.service.describe("acme", bucket.service.create_sandbox("acme")).labels == {}


def test_a_sandbox_with_a_damaged_state_exists(bucket: Bucket) -> None:
    assert bucket.service.exists("acme", bucket.box) is False
    bucket.write()
    assert bucket.service.exists("acme", bucket.box) is True
    assert bucket.service.exists("other", bucket.box) is False
    bucket.catalog.store.put(keys.state("acme", bucket.box), b"{")
    assert bucket.service.exists("acme", bucket.box) is True


def test_existence_is_not_guessed_while_the_bucket_is_unavailable(bucket: Bucket) -> None:
    class Away(SandboxDocuments):
        def find_state(self, tenant: str, sandbox: str) -> StoredState | None:
            raise StoreUnavailableError("get", bucket="b", key="k")

    service = bucket.over_documents(Away(bucket.catalog.store, lambda: NOW))
    with pytest.raises(StorageUnavailableError):
        service.exists("acme", bucket.box)


def test_concurrent_writes_of_the_actor_are_kept(bucket: Bucket, place_of_documents: Place) -> None:
    if not place_of_documents.conditional_writes:
        pytest.skip(f"{place_of_documents.name} has no conditional writes, so the last writer wins")
    bucket.write(labels={"a": "1"})
    epochs = iter((1, 2))

    def actor_writes() -> None:
        epoch = next(epochs, None)
        if epoch is not None:
            bucket.write(epoch=epoch)

    service = bucket.over_documents(Interrupted(bucket.catalog.store, actor_writes))
    assert service.change_labels("acme", bucket.box, {"b": "2"}, []) == {"a": "1", "b": "2"}
    assert (bucket.state().epoch, bucket.state().labels) == (2, {"a": "1", "b": "2"})


def test_setting_labels_fails_if_the_state_changes_all_the_time(bucket: Bucket, place_of_documents: Place) -> None:
    if not place_of_documents.conditional_writes:
        pytest.skip(f"{place_of_documents.name} has no conditional writes, so the last writer wins")
    state = bucket.write()
    writes = iter(range(1, 1000))
    service = bucket.over_documents(Interrupted(bucket.catalog.store, lambda: bucket.write(epoch=next(writes))))
    with pytest.raises(StorageUnavailableError):
        service.set_labels("acme", bucket.box, {"a": "1"})
    assert bucket.state().labels == state.labels


def test_an_unconfirmed_write_has_an_unknown_outcome(bucket: Bucket) -> None:
    class Unsure(SandboxDocuments):
        def write_state(self, state: SandboxState, *, replacing: str | None) -> str:
            super().write_state(state, replacing=replacing)
            raise StoreUnavailableError("put", bucket="b", key="k")

    service = bucket.over_documents(Unsure(bucket.catalog.store, lambda: NOW))
    with pytest.raises(StorageUnavailableError) as raised:
        service.set_labels("acme", bucket.box, {"a": "1"})
    assert raised.value.context == {"outcome": "unknown"}


def test_labels_are_limited_on_every_path(bucket: Bucket) -> None:
    bucket.service.set_labels("acme", bucket.box, {f"k{number}": "" for number in range(64)})
    with pytest.raises(InvalidRequestError):
        bucket.service.change_labels("acme", bucket.box, {"one-more": ""}, [])
    with pytest.raises(InvalidRequestError):
        bucket.service.set_labels("acme", bucket.box, {"a b": ""})
    with pytest.raises(InvalidRequestError):
        bucket.service.set_labels("acme", bucket.box, {"a": "\n"})
    assert len(bucket.state().labels) == 64
    assert len(bucket.service.change_labels("acme", bucket.box, {"one-more": ""}, ["k0"])) == 64


def test_events_are_newest_first_and_limited(bucket: Bucket) -> None:
    with pytest.raises(SandboxNotFoundError):
        bucket.service.events("acme", bucket.box, 10)
    events = [
        Event(kind="created", at=NOW, node="n1"),
        Event(kind="backed_up", at=NOW + timedelta(seconds=1), dir="/workspace", backup_id=A, node="n1"),
        Event(kind="slept", at=NOW + timedelta(seconds=2)),
    ]
    bucket.write(events=events)
    found = bucket.service.events("acme", bucket.box, 2).events
    assert [(event.kind, event.at) for event in found] == [("slept", events[2].at), ("backed_up", events[1].at)]
    assert (found[1].dir, found[1].backup_id, found[1].node) == ("/workspace", A, "n1")
    assert len(bucket.service.events("acme", bucket.box, 1000).events) == 3
    with pytest.raises(InvalidRequestError):
        bucket.service.events("acme", bucket.box, 0)


def test_a_sleeping_sandbox_shows_its_last_recovery(bucket: Bucket) -> None:
    directories = [
        RecoveredDirectory(dir="/workspace", backup_id=A, taken_at=NOW),
        RecoveredDirectory(dir="/app", backup_id=B, taken_at=NOW, error="BACKUP_EXPIRED"),
    ]
    bucket.write(epoch=3, last_used_at=NOW, recovery=Recovery(at=NOW, lost_node="gone", directories=directories))
    info = bucket.service.describe("acme", bucket.box)
    assert (info.epoch, info.last_used_at) == (3, NOW)
    assert info.recovery is not None
    assert (info.recovery.at, info.recovery.lost_node) == (NOW, "gone")
    assert [(row.dir, row.backup_id, row.taken_at, row.error) for row in info.recovery.directories] == [
        ("/workspace", A, NOW, None),
        ("/app", B, NOW, "BACKUP_EXPIRED"),
    ]


def test_labels_are_written_without_conditional_writes_too(bucket: Bucket, place_of_documents: Place) -> None:
    assert bucket.catalog.store.supports_conditional_writes() == place_of_documents.conditional_writes
    for number in range(3):
        bucket.service.set_labels("acme", bucket.box, {"n": str(number)})
    assert bucket.state().labels == {"n": "2"}


def test_pending_backups_and_those_of_a_sleep_cannot_be_deleted(bucket: Bucket) -> None:
    def deleted(backup_id: str) -> bool:
        try:
            bucket.service.delete_backup("acme", backup_id)
        except InvalidRequestError:
            return False
        return True

    made = {name: str(uuid.uuid4()) for name in ("pending", "slept_in", "replaced", "own")}
    for backup_id in made.values():
        bucket.catalog.store.put(keys.archive(backup_id), b"archive")
        bucket.catalog.commit(
            BackupRecord(
                id=backup_id,
                dir="/workspace",
                size_bytes=7,
                ttl=3600,
                created_at=NOW,
                version=1,
                tenant="acme",
                sandbox=bucket.box,
            )
        )
    bucket.write(
        epoch=1,
        pending=[made["pending"]],
        sleep_backups=[made["pending"], made["slept_in"], made["replaced"]],
        checkpoints=[
            Checkpoint(dir="/home", backup_id=made["slept_in"], taken_at=NOW, of_sleep=True),
            Checkpoint(dir="/app", backup_id=made["own"], taken_at=NOW),
        ],
    )
    outcomes = {name: deleted(backup_id) for name, backup_id in made.items()}
    assert outcomes == {"pending": False, "slept_in": False, "replaced": True, "own": True}


def test_a_backup_says_how_much_of_it_is_its_own(bucket: Bucket) -> None:
    layers = [
        StoredLayer(sha256=letter * 64, size_bytes=size, part_bytes=5 * 2**20, parts=[letter * 64])
        for letter, size in (("a", 4000), ("b", 30))
    ]
    own, parent = layers[-1], str(uuid.uuid4())
    fields = {"dir": "/workspace", "ttl": 3600, "created_at": NOW, "tenant": "acme", "sandbox": bucket.box}
    full = {"id": str(uuid.uuid4()), "version": 1, "size_bytes": 7}
    incremental = {
        "id": str(uuid.uuid4()), "version": 2, "layers": layers, "parent": parent,
        **{name: getattr(own, name) for name in ("sha256", "size_bytes", "part_bytes", "parts")},
    }  # fmt: skip
    for record in (full, incremental):
        bucket.catalog.commit(BackupRecord.model_validate({**fields, **record}))
    said = {
        info.id: (info.size_bytes, info.total_bytes, info.depth, info.parent)
        for info in bucket.service.backups("acme", bucket.box, 10, None).backups
    }
    assert said == {full["id"]: (7, 7, 1, None), incremental["id"]: (30, 4030, 2, parent)}
    assert bucket.service.backup("acme", str(incremental["id"])).total_bytes == 4030
