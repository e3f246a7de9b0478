"""Commit, listing, deletion and collection of backups, with a crash or an unknown outcome at every step."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from storage import keys
from storage.catalog import BackupCatalog
from storage.collect import CollectionReport, collect
from storage.errors import (
    CorruptMetadataError,
    InvalidCursorError,
    ObjectMissingError,
    PreconditionFailedError,
    StoreUnavailableError,
)
from storage.metadata import BackupRecord, RestoredDirectory, SandboxState
from storage.s3 import S3ObjectStore
from storage.store import Head, ObjectStore, list_all
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryObjectStore
from tests.support.s3 import FAST

KEY = SecretStr("signing key")
NOW = datetime.now(UTC).replace(microsecond=0)
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
"""Longer than a run of the tests by far: objects are older than the grace period then, whenever they were made."""


@dataclass(slots=True)
class Shelf:
    """A catalog over an empty bucket, with faults on request."""

    catalog: BackupCatalog
    store: ObjectStore
    faulty: FaultyStore

    def record(
        self, *, at: datetime = NOW, ttl: float = HOUR_S, sandbox: str = "box", tenant: str = "acme"
    ) -> BackupRecord:
        return BackupRecord(
            id=str(uuid.uuid4()),
            dir="/workspace",
            size_bytes=7,
            ttl=ttl,
            created_at=at,
            version=1,
            tenant=tenant,
            sandbox=sandbox,
        )

    def backup(self, **fields: Any) -> BackupRecord:
        record = self.record(**fields)
        self.store.put(keys.archive(record.id), b"archive")
        return self.catalog.commit(record).record

    def objects(self) -> set[str]:
        return {row.key for row in list_all(self.store, "")}

    def collect(self, *, after_s: float, grace_s: float = HOUR_S, dry_run: bool = False) -> CollectionReport:
        return collect(self.catalog, now=NOW + timedelta(seconds=after_s), grace_s=grace_s, dry_run=dry_run)


@pytest.fixture(params=["memory", "rclone"])
def shelf(request: pytest.FixtureRequest) -> Iterator[Shelf]:
    """A shelf over a store with conditional writes, and one without."""
    if request.param == "memory":
        store: ObjectStore = MemoryObjectStore()
    else:
        store = S3ObjectStore(request.getfixturevalue("emptied_rclone_config"), transfer=FAST)

    def clear() -> None:
        for row in list(list_all(store, "")):
            store.delete(row.key)
        for upload in store.list_uploads(""):
            store.abort_upload(upload.key, upload.upload_id)

    clear()
    faulty = FaultyStore(store)
    catalog = BackupCatalog(faulty, KEY, lambda: NOW)
    yield Shelf(catalog, store, faulty)
    clear()


def entry_of(record: BackupRecord) -> str:
    assert record.sandbox is not None
    return keys.index_entry(record.owner, record.sandbox, record.created_at, record.id)


def test_a_committed_backup_is_found_signed_and_listed(shelf: Shelf) -> None:
    record = shelf.record()
    committed = shelf.catalog.commit(record)
    assert committed.indexed
    found = shelf.catalog.get("acme", record.id)
    assert found == committed.record
    assert shelf.catalog.trusted(found)
    assert not shelf.catalog.trusted(record)
    assert shelf.catalog.page("acme", "box").records == (found,)
    assert not shelf.catalog.is_expired(found)


def test_a_backup_of_another_tenant_is_missing(shelf: Shelf) -> None:
    record = shelf.backup()
    for tenant in ("default", "other"):
        with pytest.raises(ObjectMissingError) as foreign:
            shelf.catalog.get(tenant, record.id)
        with pytest.raises(ObjectMissingError) as missing:
            shelf.catalog.get(tenant, str(uuid.UUID(int=0)))
        assert foreign.value.operation == missing.value.operation
        assert not shelf.catalog.delete(tenant, record.id)
        assert shelf.catalog.page(tenant, "box").records == ()
    assert shelf.catalog.get("acme", record.id) == record


def test_a_foreign_backup_belongs_to_the_default_tenant_and_is_not_trusted(shelf: Shelf) -> None:
    backup_id = str(uuid.uuid4())
    document = f'{{"id":"{backup_id}","dir":"/app","sizeBytes":1,"ttl":60,"createdAt":"2026-02-23T10:11:12.345Z"}}'
    shelf.store.put(keys.metadata(backup_id), document.encode())
    record = shelf.catalog.get("default", backup_id)
    assert not shelf.catalog.trusted(record)
    with pytest.raises(ObjectMissingError):
        shelf.catalog.get("acme", backup_id)


def test_metadata_with_another_backups_id_is_corrupt(shelf: Shelf) -> None:
    record, other = shelf.backup(), str(uuid.uuid4())
    shelf.store.put(keys.metadata(other), record.to_json())
    with pytest.raises(CorruptMetadataError):
        shelf.catalog.get("acme", other)


@pytest.mark.parametrize("after", [False, True])
def test_a_commit_of_unknown_outcome_is_settled_by_reading(shelf: Shelf, after: bool) -> None:
    record = shelf.record()
    shelf.faulty.fail("put", "meta.json", after=after)
    assert shelf.catalog.commit(record).indexed
    assert shelf.catalog.get("acme", record.id).id == record.id
    assert sum("put backups/" in call for call in shelf.faulty.calls) == (1 if after else 2)


def test_a_commit_whose_outcome_stays_unknown_fails_and_may_be_discarded(shelf: Shelf) -> None:
    record = shelf.record()
    shelf.faulty.fail("put", "meta.json", after=True)
    shelf.faulty.fail("get", "meta.json", after=False)
    with pytest.raises(StoreUnavailableError):
        shelf.catalog.commit(record)
    shelf.catalog.discard(record)
    assert shelf.objects() == set()


def test_a_second_backup_with_the_same_id_is_refused_if_the_store_has_conditional_writes(shelf: Shelf) -> None:
    record = shelf.backup()
    other = record.model_copy(update={"dir": "/app"})
    if shelf.store.supports_conditional_writes():
        with pytest.raises(PreconditionFailedError):
            shelf.catalog.commit(other)
        assert shelf.catalog.get("acme", record.id).dir == "/workspace"
    assert shelf.catalog.commit(record).record == record


@pytest.mark.parametrize("after", [False, True])
def test_a_failing_index_entry_does_not_fail_the_commit(shelf: Shelf, after: bool) -> None:
    record = shelf.record()
    shelf.faulty.fail("put", "sandboxes/", after=after)
    assert not shelf.catalog.commit(record).indexed
    assert shelf.catalog.get("acme", record.id).id == record.id
    shelf.store.put(keys.archive(record.id), b"archive")
    report = shelf.collect(after_s=0)
    assert report.rebuilt_index_entries == (() if after else (entry_of(record),))
    assert [r.id for r in shelf.catalog.page("acme", "box").records] == [record.id]


def test_pages_are_newest_first_and_skip_deleted_and_damaged_backups(shelf: Shelf) -> None:
    records = [shelf.backup(at=NOW + timedelta(milliseconds=n)) for n in (5, 1, 3, 0, 4, 2)]
    newest_first = sorted(records, key=lambda r: r.created_at, reverse=True)
    shelf.store.delete(keys.metadata(newest_first[1].id))
    shelf.store.put(keys.metadata(newest_first[4].id), b"damaged")
    expected = [r.id for n, r in enumerate(newest_first) if n not in (1, 4)]
    shelf.backup(sandbox="box-2")
    shelf.backup(sandbox="box", tenant="default")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = shelf.catalog.page("acme", "box", limit=2, cursor=cursor)
        assert len(page.records) <= 2
        seen += [r.id for r in page.records]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == expected


@pytest.mark.parametrize("cursor", ["", "x", "../../backups/", "~", "8228158527876"])
def test_a_foreign_cursor_is_refused(shelf: Shelf, cursor: str) -> None:
    with pytest.raises(InvalidCursorError):
        shelf.catalog.page("acme", "box", cursor=cursor)


def test_deleting_removes_everything_and_is_idempotent(shelf: Shelf) -> None:
    record, kept = shelf.backup(), shelf.backup()
    shelf.faulty.calls.clear()
    assert shelf.catalog.delete("acme", record.id)
    assert [c for c in shelf.faulty.calls if c.startswith("delete")] == [
        f"delete {keys.metadata(record.id)}",
        f"delete {keys.archive(record.id)}",
        f"delete {keys.listing(record.id)}",
        f"delete {entry_of(record)}",
    ]
    assert not shelf.catalog.delete("acme", record.id)
    assert shelf.objects() == {keys.metadata(kept.id), keys.archive(kept.id), entry_of(kept)}


@pytest.mark.parametrize("part", ["meta.json", "data.sqsh", "sandboxes/"])
@pytest.mark.parametrize("after", [False, True])
def test_a_deletion_that_fails_half_way_leaves_a_whole_backup_or_none(shelf: Shelf, part: str, after: bool) -> None:
    record = shelf.backup()
    shelf.faulty.fail("delete", part, after=after)
    with pytest.raises(StoreUnavailableError):
        shelf.catalog.delete("acme", record.id)
    if keys.metadata(record.id) in shelf.objects():
        assert keys.archive(record.id) in shelf.objects()
        assert shelf.catalog.delete("acme", record.id)
    else:
        assert shelf.catalog.page("acme", "box").records == ()
    shelf.collect(after_s=DAY_S)
    assert shelf.objects() == set()


def test_sandboxes_are_listed_per_tenant_in_pages(shelf: Shelf) -> None:
    names = ["a", "a-b", "a0", "b"]
    for name in names:
        shelf.catalog.sandboxes.write_state(SandboxState(id=name, tenant="acme", created_at=NOW), replacing=None)
        shelf.backup(sandbox=name)
    shelf.backup(sandbox="other", tenant="default")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = shelf.catalog.sandboxes.page("acme", limit=1, cursor=cursor)
        seen += page.names
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(seen) == names and len(seen) == len(names)
    assert shelf.catalog.sandboxes.page("default").names == ("other",)
    with pytest.raises(InvalidCursorError):
        shelf.catalog.sandboxes.page("acme", cursor="../")


def test_a_state_is_written_read_and_deleted(shelf: Shelf) -> None:
    assert shelf.catalog.sandboxes.find_state("acme", "box") is None
    first = SandboxState(id="box", tenant="acme", created_at=NOW)
    etag = shelf.catalog.sandboxes.write_state(first, replacing=None)
    restored = RestoredDirectory(dir="/app", backup_id=str(uuid.uuid4()), mode="overlay", restored_at=NOW)
    second = first.model_copy(update={"restored": [restored]})
    shelf.faulty.fail("put", "state.json", after=True)
    newer = shelf.catalog.sandboxes.write_state(second, replacing=etag)
    stored = shelf.catalog.sandboxes.find_state("acme", "box")
    assert stored is not None and (stored.state, stored.etag) == (second, newer)
    if shelf.store.supports_conditional_writes():
        for stale in (etag, None):
            with pytest.raises(PreconditionFailedError):
                shelf.catalog.sandboxes.write_state(first, replacing=stale)
    shelf.catalog.sandboxes.delete_state("acme", "box")
    assert shelf.catalog.sandboxes.find_state("acme", "box") is None


def test_a_state_under_another_sandboxs_key_is_corrupt(shelf: Shelf) -> None:
    state = SandboxState(id="other", tenant="acme", created_at=NOW)
    shelf.store.put(keys.state("acme", "box"), state.to_json())
    with pytest.raises(CorruptMetadataError):
        shelf.catalog.sandboxes.find_state("acme", "box")


def test_a_collection_removes_expired_backups_only(shelf: Shelf) -> None:
    expired, live = shelf.backup(ttl=60), shelf.backup(ttl=100 * HOUR_S)
    before = shelf.objects()
    report = shelf.collect(after_s=DAY_S, dry_run=True)
    assert (report.expired_backups, report.dry_run) == ((expired.id,), True)
    assert shelf.objects() == before
    report = shelf.collect(after_s=DAY_S)
    assert report == CollectionReport(
        dry_run=False, expired_backups=(expired.id,), freed_bytes=7 + len(expired.to_json())
    )
    assert shelf.objects() == {keys.metadata(live.id), keys.archive(live.id), entry_of(live)}
    assert shelf.collect(after_s=DAY_S) == CollectionReport(dry_run=False)


def test_a_collection_leaves_objects_younger_than_the_grace_period(shelf: Shelf) -> None:
    expired = shelf.backup(ttl=1)
    shelf.store.put(keys.archive(str(uuid.uuid4())), b"on its way")
    shelf.store.delete(keys.metadata(shelf.backup(ttl=9).id))
    shelf.store.create_upload(keys.archive(expired.id))
    before = shelf.objects()
    assert shelf.collect(after_s=HOUR_S / 2) == CollectionReport(dry_run=False)
    assert shelf.objects() == before


def test_orphans_of_every_kind_are_collected(shelf: Shelf) -> None:
    live = shelf.backup(ttl=100 * HOUR_S)
    orphan, stale = str(uuid.uuid4()), shelf.record()
    shelf.store.put(keys.archive(orphan), b"orphan")
    shelf.store.put(keys.listing(orphan), b"listing")
    unlisted = str(uuid.uuid4())
    shelf.store.put(keys.listing(unlisted), b"listing")
    shelf.store.put(keys.listing(live.id), b"listing")
    shelf.store.put(entry_of(stale), b"")
    upload_key = keys.archive(str(uuid.uuid4()))
    shelf.store.create_upload(upload_key)
    report = shelf.collect(after_s=DAY_S)
    assert report == CollectionReport(
        dry_run=False,
        orphaned_archives=tuple(sorted((orphan, unlisted))),
        stale_uploads=(upload_key,),
        stale_index_entries=(entry_of(stale),),
        freed_bytes=20,
    )
    assert shelf.objects() == {
        keys.metadata(live.id),
        keys.archive(live.id),
        keys.listing(live.id),
        entry_of(live),
    }
    assert list(shelf.store.list_uploads("")) == []


def test_settling_an_uncommitted_backup_removes_it_and_prevents_its_commit(shelf: Shelf) -> None:
    record = shelf.record()
    shelf.store.put(keys.archive(record.id), b"archive")
    shelf.store.put(keys.listing(record.id), b"listing")
    shelf.store.create_upload(keys.archive(record.id))
    shelf.store.create_upload(keys.listing(record.id))
    assert shelf.catalog.settle(record.id) is None
    assert shelf.catalog.settle(record.id) is None
    assert {keys.archive(record.id), keys.listing(record.id)}.isdisjoint(shelf.objects())
    assert list(shelf.store.list_uploads("")) == []
    with pytest.raises(ObjectMissingError):
        shelf.catalog.get("acme", record.id)
    if shelf.store.supports_conditional_writes():
        with pytest.raises(PreconditionFailedError):
            shelf.catalog.commit(record)


def test_settling_a_committed_backup_changes_nothing(shelf: Shelf) -> None:
    committed = shelf.backup()
    before = shelf.objects()
    assert shelf.catalog.settle(committed.id) == committed
    assert shelf.objects() == before


def test_settling_a_committed_backup_adds_its_missing_index_entry(shelf: Shelf) -> None:
    committed = shelf.backup()
    shelf.store.delete(entry_of(committed))
    assert shelf.catalog.settle(committed.id) == committed
    assert entry_of(committed) in shelf.objects()


def test_abandoning_a_backup_removes_all_of_it(shelf: Shelf) -> None:
    record = shelf.record()
    before = shelf.objects()
    shelf.store.put(keys.archive(record.id), b"archive")
    shelf.store.put(keys.listing(record.id), b"listing")
    shelf.store.put(keys.metadata(record.id), b"{}")
    shelf.store.create_upload(keys.archive(record.id))
    for _ in range(2):
        shelf.catalog.abandon(record.id)
        assert shelf.objects() == before
        assert list(shelf.store.list_uploads("")) == []


def test_a_fence_is_collected_after_the_grace_period(shelf: Shelf) -> None:
    if not shelf.store.supports_conditional_writes():
        pytest.skip("this store has no conditional writes, and so no fences")
    fenced = str(uuid.uuid4())
    shelf.catalog.settle(fenced)
    shelf.store.put(keys.archive(fenced), b"orphan")
    shelf.store.put(keys.listing(fenced), b"orphan")
    shelf.collect(after_s=HOUR_S / 2)
    assert shelf.objects() == {keys.metadata(fenced), keys.archive(fenced), keys.listing(fenced)}
    report = shelf.collect(after_s=DAY_S)
    assert report.orphaned_archives == (fenced,)
    assert shelf.objects() == set()


def test_a_claim_is_replaced_only_if_it_is_unchanged(shelf: Shelf) -> None:
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    assert shelf.catalog.sandboxes.find_claim("acme", "box", "key") is None
    shelf.catalog.sandboxes.write_claim("acme", "box", "key", one, replacing=None)
    found = shelf.catalog.sandboxes.find_claim("acme", "box", "key")
    assert found is not None and found.backup_id == one
    assert shelf.catalog.sandboxes.find_claim("acme", "other", "key") is None
    if shelf.store.supports_conditional_writes():
        with pytest.raises(PreconditionFailedError):
            shelf.catalog.sandboxes.write_claim("acme", "box", "key", other, replacing=None)
    shelf.catalog.sandboxes.write_claim("acme", "box", "key", other, replacing=found.etag)
    replaced = shelf.catalog.sandboxes.find_claim("acme", "box", "key")
    assert replaced is not None and replaced.backup_id == other


def test_claims_of_deleted_backups_are_collected_and_others_kept(shelf: Shelf) -> None:
    live = shelf.backup(ttl=100 * HOUR_S)
    shelf.catalog.sandboxes.write_claim("acme", "box", "kept", live.id, replacing=None)
    shelf.catalog.sandboxes.write_claim("acme", "box", "gone", str(uuid.uuid4()), replacing=None)
    gone, kept = keys.claim("acme", "box", "gone"), keys.claim("acme", "box", "kept")
    assert shelf.collect(after_s=60).stale_index_entries == ()
    assert shelf.collect(after_s=DAY_S).stale_index_entries == (gone,)
    assert gone not in shelf.objects() and kept in shelf.objects()


def test_a_claim_that_is_renewed_during_a_collection_is_kept(shelf: Shelf) -> None:
    shelf.catalog.sandboxes.write_claim("acme", "box", "key", str(uuid.uuid4()), replacing=None)
    claimed = shelf.catalog.sandboxes.find_claim("acme", "box", "key")
    assert claimed is not None
    later = datetime.now(UTC) + timedelta(hours=2)

    class Meanwhile(FaultyStore):
        """A store in which the key is claimed again just after a collection has found its claim stale."""

        def head(self, key: str) -> Head:
            found = self.inner.head(key)
            return dataclasses.replace(found, last_modified=later) if key == keys.claim("acme", "box", "key") else found

    report = collect(BackupCatalog(Meanwhile(shelf.store), KEY), now=later, grace_s=HOUR_S)
    assert report.stale_index_entries == ()
    assert shelf.catalog.sandboxes.find_claim("acme", "box", "key") == claimed


def test_a_stale_listing_deletes_no_live_backup(shelf: Shelf) -> None:
    live = shelf.backup(ttl=100 * HOUR_S)

    class Behind(FaultyStore):
        """A store whose listing does not show the metadata yet."""

        def list(self, prefix: str, **kwargs: Any) -> Any:
            page = self.inner.list(prefix, **kwargs)
            objects = tuple(row for row in page.objects if not row.key.endswith("meta.json"))
            return type(page)(objects, page.prefixes, page.after)

    catalog = BackupCatalog(Behind(shelf.store), KEY)
    report = collect(catalog, now=NOW + timedelta(seconds=DAY_S), grace_s=HOUR_S)
    assert report == CollectionReport(dry_run=False)
    assert shelf.catalog.get("acme", live.id) == live
    assert entry_of(live) in shelf.objects()


def test_a_backup_without_readable_metadata_or_archive_is_reported_and_kept(shelf: Shelf) -> None:
    damaged, bare = shelf.backup(), shelf.backup(ttl=100 * HOUR_S)
    shelf.store.put(keys.metadata(damaged.id), b"{")
    shelf.store.delete(keys.archive(bare.id))
    before = shelf.objects()
    report = shelf.collect(after_s=DAY_S)
    assert (report.unreadable, report.without_archive) == ((damaged.id,), (bare.id,))
    assert shelf.objects() == before


def test_foreign_objects_in_the_bucket_are_not_collected(shelf: Shelf) -> None:
    for key in ("backups/readme.txt", "sandboxes/x", "tenants/y/z", "other/data.sqsh", "backups/not-a-uuid/data.sqsh"):
        shelf.store.put(key, b"x")
    before = shelf.objects()
    assert shelf.collect(after_s=1000 * HOUR_S) == CollectionReport(dry_run=False)
    assert shelf.objects() == before


def test_state_documents_are_counted_over_all_tenants(shelf: Shelf) -> None:
    for tenant, name in (("acme", "one"), ("acme", "two"), ("default", "one")):
        state = SandboxState(id=name, tenant=tenant, created_at=NOW)
        shelf.catalog.sandboxes.write_state(state, replacing=None)
    shelf.backup(sandbox="gone")
    shelf.store.put("sandboxes/one/state.json.bak", b"")
    assert shelf.catalog.sandboxes.count_states() == 3
    shelf.catalog.sandboxes.delete_state("acme", "one")
    assert shelf.catalog.sandboxes.count_states() == 2
