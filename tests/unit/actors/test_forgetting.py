"""Forgetting of missing directories: the node's record loses all of them in one write, or none."""

from __future__ import annotations

import errno
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest

from actors.node.archive_cache import ArchiveCache
from actors.node.drivers import Driver
from actors.node.kept import KeptArchives
from actors.node.layers import Layers
from actors.node.records import TwinFile
from actors.node.tree import Tree
from actors.node.verified import Verified
from actors.sandbox.operations import Operations
from actors.sandbox.overlays import Overlays
from actors.sandbox.recovery import DirectoryRecovery
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.restored_record import RestoredRecord
from actors.state.node_record import Entry, Record, RecoveryItem, RecoveryPlan, twin_file

AT = datetime(2026, 1, 2, tzinfo=UTC)
UNMOUNTED = Entry(
    dir="/workspace/overlay",
    backup_id=str(uuid.uuid4()),
    mode="overlay",
    restored_at=AT,
    driver=Driver.KERNEL,
    layer="layer",
    archive_sha256="0" * 64,
)
MISSING = RecoveryItem(dir="/app", backup_id=str(uuid.uuid4()), taken_at=AT, error="BACKUP_EXPIRED")
RECORD = Record(created_at=AT, entries=(UNMOUNTED,), recovery=RecoveryPlan(at=AT, directories=(MISSING,)))


class FailingFile(TwinFile[Record]):
    """The file of a record, on a disk that is full for one write."""

    def __init__(self, file: Path, failing: int) -> None:
        """`failing` is the number of that write, from 1."""
        super().__init__(file, Record.model_validate_json)
        self._left = failing

    def write(self, document: str) -> None:
        self._left -= 1
        if self._left == 0:
            raise OSError(errno.ENOSPC, "no space left")
        super().write(document)


@pytest.mark.parametrize("failing", [1, 2])
def test_several_directories_are_forgotten_all_or_none(tmp_path: Path, failing: int) -> None:
    file = tmp_path / "sandbox.json"
    twin_file(file).write(RECORD.model_dump_json())
    tree = Tree(tmp_path / "root", tops=("/workspace", "/app"), uid=0)
    layers = Layers(tmp_path / "layers", tmp_path / "lowers", driver=Driver.KERNEL, on_lost=lambda layer: None)
    verified = Verified(tmp_path / "verified")
    restored = RestoredDirectories(
        tmp_path,
        tree,
        RestoredRecord(FailingFile(file, failing)),
        Overlays(tree, layers),
        KeptArchives(tmp_path / "archives", verified),
    )
    recovery = DirectoryRecovery("box", restored, Operations(), ArchiveCache(tmp_path / "cache", max_bytes=1))
    restored.note_unmounted(UNMOUNTED)
    recovery.unmounted_error(UNMOUNTED, "LAYER_MISMATCH", in_bucket=None)

    try:
        forgotten = recovery.forget([UNMOUNTED.dir, MISSING.dir], forgotten_before=[])
    except OSError:
        forgotten = []

    on_disk, is_good = twin_file(file).read()
    assert on_disk == restored.record
    assert is_good
    if failing == 1:
        assert (restored.record, restored.unmounted, forgotten) == (RECORD, UNMOUNTED, [])
    else:
        assert (restored.record.entries, restored.missing, restored.unmounted) == ((), [], None)
        assert sorted((row.dir, row.error) for row in forgotten) == [
            ("/app", "BACKUP_EXPIRED"),
            ("/workspace/overlay", "LAYER_MISMATCH"),
        ]
