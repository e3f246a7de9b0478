"""Requests and memory that many backups take: none of it grows faster than their number."""

from __future__ import annotations

import tracemalloc
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from storage import keys
from storage.catalog import BackupCatalog
from storage.collect import CollectionReport, collect
from storage.errors import StoreUnavailableError
from storage.metadata import BackupRecord, SandboxState, StoredLayer
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryObjectStore

NOW = datetime(2026, 11, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=2)
PART_BYTES = 5 * 2**20


@dataclass(slots=True)
class Bucket:
    """A bucket in memory that counts requests."""

    store: FaultyStore = field(default_factory=lambda: FaultyStore(MemoryObjectStore(clock=lambda: NOW)))
    catalog: BackupCatalog = field(init=False)

    def __post_init__(self) -> None:
        self.catalog = BackupCatalog(self.store, SecretStr("signing key"), clock=lambda: NOW)

    def fill(self, number: int, *, parts: int = 1, ttl_s: float = 1e7) -> list[BackupRecord]:
        """Makes backups of one sandbox, with so many parts each."""
        made = []
        for n in range(number):
            record = BackupRecord(
                id=str(uuid.uuid4()),
                dir="/workspace",
                size_bytes=7,
                ttl=ttl_s,
                created_at=NOW - timedelta(seconds=n),
                version=1,
                tenant="acme",
                sandbox="box",
                sha256="a" * 64,
                part_bytes=PART_BYTES,
                parts=[f"{n * parts + part:064x}" for part in range(parts)],
            )
            self.store.put(keys.archive(record.id), b"archive")
            made.append(self.catalog.commit(record).record)
        self.store.calls.clear()
        return made

    def requests(self) -> Counter[str]:
        """The requests since the last call, by their kinds."""
        counted = Counter(call.split()[0] for call in self.store.calls)
        self.store.calls.clear()
        return counted

    def collect(self, *, dry_run: bool = False, workers: int = 4) -> CollectionReport:
        return collect(self.catalog, now=LATER, grace_s=86_400, dry_run=dry_run, workers=workers)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.mark.parametrize("number", [300, 600])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_collection_reads_each_document_once(bucket: Bucket, number: int, workers: int) -> None:
    made = bucket.fill(number)
    for n in range(number):
        bucket.catalog.sandboxes.write_state(SandboxState(id=f"box-{n}", tenant="acme", created_at=NOW), replacing=None)
        bucket.catalog.sandboxes.write_claim("acme", "box", f"key {n}", made[n].id, replacing=None)
    bucket.store.calls.clear()
    assert bucket.collect(workers=workers) == CollectionReport(dry_run=False)
    requests = bucket.requests()
    assert requests["get"] == 3 * number
    assert requests["list"] <= 3 + 5 * number // 1000
    assert requests.keys() == {"get", "list"}


def _peak_bytes(bucket: Bucket) -> int:
    tracemalloc.start()
    try:
        bucket.collect()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_collection_keeps_no_metadata_in_memory() -> None:
    small, large = Bucket(), Bucket()
    small.fill(500)
    large.fill(500, parts=200)
    assert _peak_bytes(large) < 2 * _peak_bytes(small)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_collection_deletes_what_has_expired_and_reports_it_in_order(bucket: Bucket, workers: int) -> None:
    expired, kept = bucket.fill(600, ttl_s=60), bucket.fill(10)
    report = bucket.collect(workers=workers)
    assert report.expired_backups == tuple(sorted(record.id for record in expired))
    assert {record.id for record in bucket.catalog.all_records("acme", "box")} == {record.id for record in kept}


def test_a_collection_that_fails_at_one_backup_fails_and_is_continued_by_the_next(bucket: Bucket) -> None:
    expired = bucket.fill(600, ttl_s=60)
    bucket.store.fail("delete", keys.metadata(sorted(record.id for record in expired)[300]), after=False)
    with pytest.raises(StoreUnavailableError):
        bucket.collect()
    left = {record.id for record in bucket.catalog.all_records("acme", "box")}
    assert set(bucket.collect().expired_backups) == left
    assert list(bucket.catalog.all_rows("acme", "box")) == []


def test_a_dry_run_names_the_references_of_expired_backups(bucket: Bucket) -> None:
    layers = [StoredLayer(sha256=c * 64, size_bytes=7, part_bytes=PART_BYTES, parts=[c * 64]) for c in "ab"]
    for record in bucket.fill(200, ttl_s=60):
        fields = {"version": 2, "layers": layers, "sha256": "b" * 64, "parts": ["b" * 64], "signature": None}
        bucket.store.delete(keys.metadata(record.id))
        bucket.catalog.commit(record.model_copy(update=fields))
        for layer in layers:
            bucket.store.put(keys.layer_reference("acme", layer.sha256, record.id), b"")
    assert len(bucket.collect(dry_run=True).stale_index_entries) == 400


@pytest.mark.parametrize("limit", [1, 100])
def test_a_page_looks_at_a_bounded_number_of_entries_without_metadata(bucket: Bucket, limit: int) -> None:
    newest, *gone = bucket.fill(3_000)
    for record in gone[:-1]:
        bucket.store.delete(keys.metadata(record.id))
    assert bucket.catalog.page("acme", "box", limit=1).rows == (newest,)
    bucket.store.calls.clear()
    seen: list[str] = []
    pages, cursor = 0, None
    while True:
        page = bucket.catalog.page("acme", "box", limit=limit, cursor=cursor)
        requests = bucket.requests()
        assert requests["get"] <= 2_000
        assert requests["list"] <= 12
        assert len(page.rows) <= limit
        seen += [record.id for record in page.records]
        pages, cursor = pages + 1, page.cursor
        if cursor is None:
            break
    assert seen == [newest.id, gone[-1].id]
    assert pages <= 5


def test_a_full_page_reads_its_own_backups_only(bucket: Bucket) -> None:
    bucket.fill(300)
    assert len(bucket.catalog.page("acme", "box", limit=100).rows) == 100
    assert bucket.requests() == {"list": 1, "get": 100}
