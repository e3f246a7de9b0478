"""The collections that the service runs by itself: when they run, and what becomes of one that fails."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from actors.config import NodeConfig, SandboxConfig
from actors.errors import StorageUnavailableError
from actors.metrics import Tally
from actors.service.collection import CollectionTimer
from actors.service.facade import Service
from storage import keys
from storage.catalog import BackupCatalog
from storage.collect import collect
from storage.metadata import BackupRecord
from storage.store import Page
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryObjectStore
from tests.support.scripted_runtime import Clock

DAY_S = 86_400.0
OK = ("holdfast_gc_runs", ("ok",))
FAILED = ("holdfast_gc_runs", ("STORAGE_UNAVAILABLE",))


class Timed:
    """A service over an empty bucket, and the timer of its collections."""

    def __init__(self, every_s: float, store: MemoryObjectStore | None = None) -> None:
        self.store = FaultyStore(store or MemoryObjectStore())
        self.catalog = BackupCatalog(self.store, SecretStr("signing key"))
        config = SandboxConfig(node=NodeConfig(data_dir=Path("/nowhere")), signing_key=SecretStr("signing key"))
        self.tally, self.clock = Tally(), Clock()
        self.service = Service(config, self.catalog, awake=lambda tenant, names: (), meter=self.tally)
        self.timer = CollectionTimer(self.service.collection, every_s, clock=self.clock)

    def runs(self, outcome: tuple[str, tuple[str, ...]] = OK) -> float:
        return self.tally.counts().get(outcome, 0)

    def pass_(self, seconds: float) -> float:
        self.clock.now += seconds
        return self.timer.step()


def test_the_first_collection_runs_some_minutes_after_the_start_and_then_one_a_day() -> None:
    timed = Timed(DAY_S)
    assert (timed.timer.step(), timed.runs()) == (600, 0)
    assert (timed.pass_(599), timed.runs()) == (1, 0)
    assert (timed.pass_(1), timed.runs()) == (3600, 1)
    for _ in range(23):
        timed.pass_(3600)
    assert timed.runs() == 1
    assert (timed.pass_(3600), timed.runs()) == (3600, 2)


def test_a_short_interval_is_short_from_the_start() -> None:
    timed = Timed(5)
    assert timed.timer.step() == 5
    assert (timed.pass_(5), timed.runs()) == (5, 1)


def test_a_failed_collection_is_counted_and_tried_again_soon() -> None:
    timed = Timed(DAY_S)
    timed.store.fail("list", "backups/", after=False)
    assert timed.pass_(600) == 600
    assert (timed.runs(), timed.runs(FAILED), timed.service.collection.collected_at) == (0, 1, None)
    assert timed.pass_(600) == 3600
    assert (timed.runs(), timed.runs(FAILED)) == (1, 1)
    assert timed.service.collection.collected_at is not None


def test_a_collection_by_hand_puts_the_next_one_off_and_a_dry_run_does_not() -> None:
    timed = Timed(DAY_S)
    timed.pass_(590)
    timed.service.collect(dry_run=True)
    assert timed.timer.step() == 10
    timed.service.collect(dry_run=False)
    assert timed.timer.step() == 3600
    timed.pass_(DAY_S - 1)
    assert timed.runs() == 1
    timed.pass_(1)
    assert timed.runs() == 2


def test_a_service_whose_clock_is_days_ahead_of_the_stores_deletes_nothing_new() -> None:
    store = MemoryObjectStore(clock=lambda: datetime.now(UTC) - timedelta(days=9))
    uploaded, backup_id = str(uuid.uuid4()), str(uuid.uuid4())
    reference = keys.layer_reference("acme", "0" * 64, backup_id)
    for key in (keys.archive(uploaded), keys.layer("acme", "0" * 64), reference):
        store.put(key, b"x")
    report = Timed(DAY_S, store).service.collect(dry_run=False)
    assert (report.orphaned_archives, report.orphaned_layers, report.stale_index_entries) == ([], [], 0)
    assert [row.key for row in store.list("tenants/").objects] == [keys.layer("acme", "0" * 64), reference]


class Stopping(MemoryObjectStore):
    """A store whose first listing waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.listings: list[int] = []

    def list(self, prefix: str, *, after: str | None = None, limit: int = 1000, delimiter: str | None = None) -> Page:
        self.listings.append(threading.get_ident())
        self.reached.set()
        assert self.go_on.wait(30)
        return super().list(prefix, after=after, limit=limit, delimiter=delimiter)


def test_collections_of_a_service_come_one_at_a_time() -> None:
    store = Stopping()
    timed = Timed(5, store)
    threads = [
        threading.Thread(target=timed.pass_, args=[5]),
        threading.Thread(target=timed.service.collect, args=[False]),
    ]
    threads[0].start()
    assert store.reached.wait(30)
    threads[1].start()
    store.go_on.set()
    for thread in threads:
        thread.join(30)
    assert timed.runs() == 2
    order = list(dict.fromkeys(store.listings))
    assert sorted(store.listings, key=order.index) == store.listings, "their requests are mixed"


def test_two_collections_at_once_do_what_one_does() -> None:
    """As after a partition, when the service's actor was replaced but lives on."""
    timed = Timed(5)
    old = datetime.now(UTC) - timedelta(days=9)
    records = [
        BackupRecord(
            id=str(uuid.uuid4()), dir="/workspace", size_bytes=1, ttl=60, created_at=old, version=1, tenant="acme",
            sandbox="box",
        )
        for _ in range(20)
    ]  # fmt: skip
    for record in records:
        timed.store.put(keys.archive(record.id), b"x")
        timed.catalog.commit(record)
    later = datetime.now(UTC) + timedelta(days=3)
    errors: list[Exception] = []

    def run() -> None:
        try:
            collect(timed.catalog, now=later, grace_s=60)
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    collect(timed.catalog, now=later, grace_s=0)
    assert (errors, timed.store.list("").objects) == ([], ())


def test_a_collection_by_hand_raises_what_went_wrong() -> None:
    timed = Timed(5)
    timed.store.fail("list", "backups/", after=False)
    with pytest.raises(StorageUnavailableError):
        timed.service.collect(dry_run=False)
    assert timed.runs(FAILED) == 1
