"""Tampering: an attacker who can write to the bucket edits a backup's metadata, and no call trusts it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from storage import keys
from storage.catalog import UnusableBackup
from storage.errors import (
    CorruptMetadataError,
    DocumentError,
    NewerDocumentError,
    TamperedMetadataError,
    UnsignedMetadataError,
)
from storage.metadata import BackupRecord
from storage.store import list_all
from tests.contract.test_catalog import HOUR_S, NOW, Shelf, entry_of, shelf

__all__ = ["shelf"]

OTHER = str(uuid.UUID(int=7))
EDITS: dict[str, dict[str, Any]] = {
    "ttl": {"ttl": 3e9},
    "short ttl": {"ttl": 1},
    "createdAt": {"createdAt": "2199-01-01T00:00:00.000Z"},
    "tenant": {"tenant": "evil"},
    "no tenant": {"tenant": None},
    "sandbox": {"sandbox": "another"},
    "dir": {"dir": "/home"},
    "sha256": {"sha256": "a" * 64},
    "parts": {"parts": ["b" * 64], "partBytes": 7},
    "etag": {"etag": "another"},
    "sizeBytes": {"sizeBytes": 8},
    "name": {"name": "theirs"},
    "uid": {"uid": 0},
    "ofSleep": {"ofSleep": True},
    "a new field": {"somethingNew": [1]},
    "signature": {"signature": "0" * 64},
    "empty signature": {"signature": ""},
    "no signature": {"signature": None},
}
SIX = ("id", "dir", "name", "sizeBytes", "ttl", "createdAt")


def edited(record: BackupRecord, **changes: Any) -> bytes:
    kept = {**json.loads(record.to_json()), **changes}
    return json.dumps({name: value for name, value in kept.items() if value is not None}).encode()


def stripped(record: BackupRecord, **changes: Any) -> bytes:
    """The document as Cloudflare's SDK would have written it, without our fields."""
    return json.dumps(
        {name: value for name, value in json.loads(edited(record, **changes)).items() if name in SIX}
    ).encode()


def plant(shelf: Shelf, data: Callable[[BackupRecord], bytes]) -> BackupRecord:
    record = shelf.backup()
    shelf.store.put(keys.metadata(record.id), data(record))
    return record


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_record_is_refused_and_left_to_its_owner(shelf: Shelf, edit: str) -> None:
    record = plant(shelf, lambda record: edited(record, **EDITS[edit]))
    neighbour = shelf.backup(ttl=1000 * HOUR_S)
    catalog, before = shelf.catalog, shelf.objects()

    for tenant in ("acme", "evil", "default"):
        with pytest.raises(TamperedMetadataError):
            catalog.get(tenant, record.id)
    with pytest.raises(TamperedMetadataError):
        catalog.settle(record.id)
    report = shelf.collect(after_s=1000 * HOUR_S - 60)
    assert (report.tampered, report.expired_backups, report.stale_index_entries) == ((record.id,), (), ())
    for tenant in ("evil", "default"):
        with pytest.raises(TamperedMetadataError):
            catalog.delete(tenant, record.id)
        assert catalog.page(tenant, "box").rows == ()
    catalog.delete_of_sleep("acme", "box", neighbour.id)
    assert shelf.objects() == before

    (row,) = [row for row in catalog.page("acme", "box").rows if isinstance(row, UnusableBackup)]
    assert (row.entry.backup_id, row.entry.sandbox, row.entry.created_at) == (record.id, "box", NOW)
    assert isinstance(row.error, TamperedMetadataError)
    assert [kept.id for kept in catalog.page("acme", "box").records] == [neighbour.id]

    assert catalog.delete("acme", record.id)
    assert shelf.objects() == {keys.metadata(neighbour.id), keys.archive(neighbour.id), entry_of(neighbour)}


def test_a_record_without_any_of_our_fields_is_not_given_to_another_tenant(shelf: Shelf) -> None:
    record = plant(shelf, lambda record: stripped(record, ttl=1))
    before = shelf.objects()
    assert not shelf.catalog.get("default", record.id).is_signed
    with pytest.raises(UnsignedMetadataError):
        shelf.catalog.settle(record.id)
    with pytest.raises(TamperedMetadataError):
        shelf.catalog.delete("default", record.id)
    report = shelf.collect(after_s=1000 * HOUR_S)
    assert (report.unsigned, report.expired_backups, report.stale_index_entries) == ((record.id,), (), ())
    (row,) = shelf.catalog.page("acme", "box").rows
    assert isinstance(row, UnusableBackup) and isinstance(row.error, UnsignedMetadataError)
    assert shelf.objects() == before


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (lambda record: b"", CorruptMetadataError),
        (lambda record: record.to_json()[:-20], CorruptMetadataError),
        (lambda record: b"\xff\xfe" + record.to_json().decode().encode("utf-16-le"), CorruptMetadataError),
        (lambda record: edited(record, ttl="259200"), CorruptMetadataError),
        (lambda record: edited(record, ttl=float("nan")), CorruptMetadataError),
        (lambda record: edited(record, new=float("nan")), TamperedMetadataError),
        (lambda record: edited(record, padding="x" * 5 * 2**20), CorruptMetadataError),
        (lambda record: b"[" * 100_000, CorruptMetadataError),
        (lambda record: edited(record, id=OTHER), TamperedMetadataError),
        (lambda record: edited(record, version=3), NewerDocumentError),
    ],
    ids=[
        "empty",
        "half",
        "UTF-16",
        "wrong type",
        "NaN",
        "NaN in a new field",
        "too large",
        "deep",
        "other id",
        "newer",
    ],
)
def test_a_damaged_record_is_listed_as_damaged_and_only_its_owner_can_delete_it(
    shelf: Shelf, data: Callable[[BackupRecord], bytes], kind: type[DocumentError]
) -> None:
    record = plant(shelf, data)
    well = shelf.backup(ttl=1000 * HOUR_S)
    before = shelf.objects()
    acts: list[Callable[[], object]] = [
        lambda: shelf.catalog.get("acme", record.id),
        lambda: shelf.catalog.settle(record.id),
        lambda: shelf.catalog.delete("evil", record.id),
    ]
    for act in acts:
        with pytest.raises(kind) as raised:
            act()
        assert raised.value.key == keys.metadata(record.id)
    report = shelf.collect(after_s=1000 * HOUR_S - 60)
    assert report.tampered + report.unreadable == (record.id,)
    assert shelf.objects() == before
    rows = {row.entry.backup_id: type(row.error) for row in shelf.catalog.page("acme", "box").rows
            if isinstance(row, UnusableBackup)}  # fmt: skip
    assert (rows, [row.id for row in shelf.catalog.page("acme", "box").records]) == ({record.id: kind}, [well.id])
    if kind is NewerDocumentError:
        deletes: list[Callable[[], object]] = [
            lambda: shelf.catalog.delete("acme", record.id),
            lambda: shelf.catalog.delete_unusable(record.id),
        ]
        for delete in deletes:
            with pytest.raises(NewerDocumentError):
                delete()
        assert shelf.objects() == before
    else:
        assert shelf.catalog.delete("acme", record.id)
        assert shelf.objects() == {keys.metadata(well.id), keys.archive(well.id), entry_of(well)}


def test_a_record_moved_to_another_backup_is_refused_and_the_original_is_untouched(shelf: Shelf) -> None:
    mine, theirs = shelf.backup(), shelf.backup(tenant="evil")
    shelf.store.put(keys.metadata(mine.id), theirs.to_json())
    for tenant in ("acme", "evil"):
        with pytest.raises(DocumentError):
            shelf.catalog.get(tenant, mine.id)
    assert shelf.catalog.delete("acme", mine.id)
    assert shelf.catalog.get("evil", theirs.id) == theirs
    assert shelf.objects() == {keys.metadata(theirs.id), keys.archive(theirs.id), entry_of(theirs)}


def test_the_operator_can_delete_a_damaged_backup_that_is_not_listed(shelf: Shelf) -> None:
    record = plant(shelf, lambda record: edited(record, tenant="evil"))
    shelf.store.delete(entry_of(record))
    with pytest.raises(TamperedMetadataError):
        shelf.catalog.delete("acme", record.id)
    assert shelf.catalog.delete_unusable(record.id)
    assert not shelf.catalog.delete_unusable(record.id)
    assert shelf.objects() == set()


def test_the_operator_cannot_delete_a_sound_backup_as_damaged(shelf: Shelf) -> None:
    record = shelf.backup()
    before = shelf.objects()
    assert not shelf.catalog.delete_unusable(record.id)
    assert shelf.objects() == before


def test_a_forged_fence_over_a_committed_backup_does_not_remove_its_archive(shelf: Shelf) -> None:
    record = plant(shelf, lambda record: b'{"fenced":true}')
    report = shelf.collect(after_s=1000 * HOUR_S)
    assert (report.unreadable, report.orphaned_archives) == ((record.id,), ())
    assert keys.archive(record.id) in shelf.objects()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"version":1}', b"\xff", b'{"version":1,"backupId":7}', b"x" * 5 * 2**20]
)
def test_a_damaged_claim_is_ignored_replaced_and_collected(shelf: Shelf, damage: bytes) -> None:
    key, record = keys.claim("acme", "box", "k"), shelf.backup(ttl=1000 * HOUR_S)
    shelf.store.put(key, damage)
    found = shelf.catalog.sandboxes.find_claim("acme", "box", "k")
    assert found is not None and found.backup_id is None
    shelf.catalog.sandboxes.write_claim("acme", "box", "k", record.id, replacing=found.etag)
    again = shelf.catalog.sandboxes.find_claim("acme", "box", "k")
    assert again is not None and again.backup_id == record.id
    shelf.store.put(key, damage)
    assert shelf.collect(after_s=10 * HOUR_S).stale_index_entries == (key,)
    assert key not in {row.key for row in list_all(shelf.store, "")}


def test_a_later_releases_claim_and_state_are_reported_and_left_alone(shelf: Shelf) -> None:
    claim, state = keys.claim("acme", "box", "k"), keys.state("acme", "box")
    for key in (claim, state):
        shelf.store.put(key, b'{"version":3}')
    with pytest.raises(NewerDocumentError):
        shelf.catalog.sandboxes.find_claim("acme", "box", "k")
    with pytest.raises(NewerDocumentError):
        shelf.catalog.sandboxes.find_state("acme", "box")
    assert set(shelf.collect(after_s=10 * HOUR_S).unreadable) == {claim, state}
    assert shelf.objects() == {claim, state}


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"{}", b'{"version":1,"id":"x","tenant":"acme"}', b"\xff", b"x" * 17 * 2**20]
)
def test_a_damaged_state_is_reported_and_copied_aside_before_it_is_replaced(shelf: Shelf, damage: bytes) -> None:
    key = keys.state("acme", "box")
    shelf.store.put(key, damage)
    with pytest.raises(CorruptMetadataError):
        shelf.catalog.sandboxes.find_state("acme", "box")
    assert shelf.collect(after_s=10 * HOUR_S).unreadable == (key,)
    etag = shelf.catalog.sandboxes.set_aside_state("acme", "box")
    assert etag == shelf.store.get(key, max_bytes=2**26).etag
    (aside,) = shelf.objects() - {key}
    assert aside.startswith("damaged/") and aside.endswith(key)
    assert shelf.store.get(aside, max_bytes=2**26).data == damage
