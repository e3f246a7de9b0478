"""The record of a sandbox's restored directories: each change is one write, and a failed write changes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from actors.node.drivers import Driver
from actors.node.errors import CorruptRecordError
from actors.sandbox.restored_record import RestoredRecord
from actors.state.node_record import Entry, Record, RecoveryItem, RecoveryPlan, twin_file

AT = datetime(2026, 1, 2, tzinfo=UTC)


def overlay(directory: str, layer: str) -> Entry:
    return Entry(
        dir=directory,
        backup_id=str(uuid.uuid4()),
        mode="overlay",
        restored_at=AT,
        driver=Driver.FUSE,
        layer=layer,
        archive_sha256="0" * 64,
    )


OUTER, INNER, BESIDE = overlay("/app/a", "one"), overlay("/app/a/b", "two"), overlay("/app/ab", "three")
MISSING = RecoveryItem(dir="/home", backup_id=str(uuid.uuid4()), taken_at=AT)
PLAN = RecoveryPlan(at=AT, directories=(MISSING,))
RECORD = Record(created_at=AT, entries=(INNER, OUTER, BESIDE), recovery=PLAN)
CHANGES: dict[str, Callable[[RestoredRecord], object]] = {
    "recovery": lambda record: record.begin_recovery(AT, RecoveryPlan(at=AT)),
    "failure": lambda record: record.note_failure(MISSING, "BACKUP_EXPIRED"),
    "driver": lambda record: record.note_driver(Driver.KERNEL, {"one"}),
    "commit": lambda record: record.commit(overlay("/app/a", "four"), [], {}),
    "forgotten": lambda record: record.forget_missing([MISSING], unmounted=OUTER, error="LAYER_MISMATCH"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "sandbox.json"
    twin_file(made).write(RECORD.model_dump_json())
    return made


@pytest.fixture
def record(file: Path) -> RestoredRecord:
    return RestoredRecord(twin_file(file))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_on_the_disk_at_once(record: RestoredRecord, file: Path, change: str) -> None:
    CHANGES[change](record)
    assert record.value != RECORD
    assert twin_file(file).read() == (record.value, True)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_cannot_be_written_changes_nothing(record: RestoredRecord, file: Path, change: str) -> None:
    file.with_suffix(".new").mkdir()  # in the way of the temporary file
    with pytest.raises(OSError):
        CHANGES[change](record)
    assert record.value == RECORD
    assert twin_file(file).read() == (RECORD, True)


def test_a_restore_replaces_what_was_restored_in_its_directory_or_is_mounted_there(record: RestoredRecord) -> None:
    moved = overlay("/workspace/moved", "five")
    record.commit(moved, [], {})
    restored = overlay("/app/a", "six")
    record.commit(restored, [moved], {"/home": "BACKUP_EXPIRED"})
    assert record.entries == (restored, BESIDE)
    assert record.missing == []
    assert record.value.recovery is not None
    assert [row.dir for row in record.value.recovery.forgotten] == ["/home"]


def test_a_change_of_a_driver_concerns_only_the_layers_that_are_mounted(record: RestoredRecord) -> None:
    record.note_driver(Driver.KERNEL, {"one", "three"})
    assert {entry.layer: entry.driver for entry in record.entries} == {
        "one": Driver.KERNEL,
        "two": Driver.FUSE,
        "three": Driver.KERNEL,
    }


def test_a_damaged_record_is_empty_until_it_is_forgotten(record: RestoredRecord, file: Path) -> None:
    file.write_text("damaged")
    file.with_name("sandbox.json.copy").write_text("damaged")
    record.read()
    assert (record.entries, record.exists) == ((), True)
    with pytest.raises(CorruptRecordError):
        record.check_readable()
    record.forget()
    record.check_readable()


def test_a_lost_copy_of_the_record_is_written_again(record: RestoredRecord, file: Path) -> None:
    file.unlink()
    record.read()
    assert record.value == RECORD
    record.complete()
    assert twin_file(file).read() == (RECORD, True)
