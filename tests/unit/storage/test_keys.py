"""Keys of the bucket: unambiguous, and the index lists the newest backup first."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import keys

ID = "7f8b6a0e-5c1d-4a52-9d1e-2b7f4f3f9a10"
AT = datetime(2026, 2, 23, 10, 11, 12, 123456, tzinfo=UTC)
names = st.from_regex(r"[a-z0-9]([a-z0-9\-]{0,20}[a-z0-9])?", fullmatch=True)
instants = st.datetimes(datetime(1971, 1, 1), datetime(2285, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))
ids = st.uuids().map(str)


def test_archive_and_metadata_keys_are_those_of_the_sandbox_sdk() -> None:
    assert keys.archive(ID) == f"backups/{ID}/data.sqsh"
    assert keys.metadata(ID) == f"backups/{ID}/meta.json"


def test_the_default_tenant_has_no_prefix_and_others_have_their_own() -> None:
    entry = f"8228158527876-20260223T101112123Z-{ID}"
    assert keys.index_entry("default", "box", AT, ID) == f"sandboxes/box/backups/{entry}"
    assert keys.index_entry("acme", "box", AT, ID) == f"tenants/acme/sandboxes/box/backups/{entry}"
    assert keys.state("default", "box") == "sandboxes/box/state.json"
    assert keys.state("acme", "box") == "tenants/acme/sandboxes/box/state.json"


@given(instants, instants, ids, ids)
def test_a_newer_backup_sorts_first(one: datetime, other: datetime, id_one: str, id_other: str) -> None:
    if abs(one - other) < timedelta(milliseconds=1):
        return
    younger, older = (one, other) if one > other else (other, one)
    assert keys.entry_name(younger, id_one).encode() < keys.entry_name(older, id_other).encode()


@given(names, names, instants, ids)
def test_an_index_entry_is_parsed_back(tenant: str, sandbox: str, at: datetime, backup_id: str) -> None:
    entry = keys.find_index_entry(keys.index_entry(tenant, sandbox, at, backup_id))
    assert entry is not None
    assert (entry.tenant, entry.sandbox, entry.backup_id) == (tenant, sandbox, backup_id)
    assert entry.created_at == at.replace(microsecond=at.microsecond // 1000 * 1000)
    assert keys.index_entry(entry.tenant, entry.sandbox, entry.created_at, entry.backup_id) == entry.key


@given(names, names, names, names)
def test_no_sandboxs_prefix_contains_another(tenant: str, sandbox: str, other_tenant: str, other: str) -> None:
    one, two = keys.sandbox_prefix(tenant, sandbox), keys.sandbox_prefix(other_tenant, other)
    assert one.startswith(two) == ((tenant, sandbox) == (other_tenant, other))


def test_an_instants_time_zone_does_not_change_the_key() -> None:
    assert keys.entry_name(AT.astimezone(timezone(timedelta(hours=9))), ID) == keys.entry_name(AT, ID)


@pytest.mark.parametrize("bad", ["", "..", "a/b", "A", "-a", "a-", "a b", "ü", "a" * 129, "a\n"])
def test_unsafe_names_are_refused(bad: str) -> None:
    with pytest.raises(ValueError):
        keys.state("default", bad)
    with pytest.raises(ValueError):
        keys.state(bad, "box")
    assert not keys.is_name(bad)


@pytest.mark.parametrize("bad", ["", "x", "../meta", ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"{ID}\n"])
def test_ids_that_are_no_uuid_are_refused(bad: str) -> None:
    for make in (keys.archive, keys.metadata):
        with pytest.raises(ValueError):
            make(bad)


@pytest.mark.parametrize(
    "bad", [datetime(2026, 1, 1), datetime(9999, 1, 1, tzinfo=UTC), datetime(1969, 1, 1, tzinfo=UTC)]
)
def test_instants_that_cannot_be_sorted_are_refused(bad: datetime) -> None:
    with pytest.raises(ValueError):
        keys.entry_name(bad, ID)


@given(st.text(max_size=60))
def test_foreign_keys_are_recognized_as_such(key: str) -> None:
    assert keys.find_backup_object(key) is None
    assert keys.find_index_entry(key) is None


def test_a_backups_archive_metadata_and_listing_are_told_apart() -> None:
    backup_id = str(uuid.uuid4())
    archive, metadata = (keys.find_backup_object(make(backup_id)) for make in (keys.archive, keys.metadata))
    assert archive == keys.BackupObject(keys.archive(backup_id), backup_id, False)
    assert metadata == keys.BackupObject(keys.metadata(backup_id), backup_id, True)
    listing = keys.find_backup_object(keys.listing(backup_id))
    assert listing == keys.BackupObject(keys.listing(backup_id), backup_id, False, is_listing=True)
    assert keys.find_backup_object(f"backups/{backup_id}/other") is None
    entry = keys.entry_name(AT, ID)
    assert keys.find_index_entry(f"tenants/default/sandboxes/box/backups/{entry}") is None


def test_layers_references_and_marks_are_parsed_back() -> None:
    sha256, run = "5f" * 32, str(uuid.uuid4())
    layer = keys.layer("default", sha256)
    assert layer == f"tenants/default/layers/{sha256}.sqsh"
    assert keys.find_layer_object(layer) == keys.LayerObject(layer, "default", sha256, None, None)
    reference = keys.layer_reference("acme", sha256, ID)
    assert keys.find_layer_object(reference) == keys.LayerObject(reference, "acme", sha256, ID, None)
    assert reference.startswith(keys.layer_references("acme", sha256))
    mark = keys.layer_mark("acme", sha256, run)
    assert keys.find_layer_object(mark) == keys.LayerObject(mark, "acme", sha256, None, run)
    assert mark.startswith(keys.layer_marks("acme", sha256))
    for key in (layer, reference, mark):
        assert keys.find_index_entry(key) is None and keys.find_state(key) is None and not keys.is_claim(key)
        for foreign in (f"{key}\n", key.replace("tenants", "tenant"), key.replace(sha256, sha256[1:])):
            assert keys.find_layer_object(foreign) is None


@pytest.mark.parametrize("bad", ["", "x", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_digests_that_are_none_are_refused(bad: str) -> None:
    for make in (keys.layer, keys.layer_references, keys.layer_marks):
        with pytest.raises(ValueError):
            make("acme", bad)
