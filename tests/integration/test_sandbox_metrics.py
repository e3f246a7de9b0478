"""The metrics that a sandbox counts."""

from __future__ import annotations

from actors.metrics import ARCHIVED_BYTES, CACHE_LOOKUPS, DOWNLOADED_BYTES, UPLOADED_BYTES, WAKES, Metric, Tally
from storage.catalog import BackupCatalog
from tests.support.sandboxes import Node, backup, restore, write

CONTENT = b"x" * 100_000


def size_of(catalog: BackupCatalog, backup_id: str) -> int:
    return catalog.get("default", backup_id).size_bytes


def counted(tally: Tally, metric: Metric, *labels: str) -> float:
    return tally.counts().get((metric.name, labels), 0.0)


def test_bytes_and_cache_lookups_are_counted_as_they_happen(kernel_node: Node) -> None:
    tally = Tally()
    box = kernel_node.sandbox("counted", meter=tally)
    write(box, "/workspace/file", CONTENT)
    handle = backup(box)
    size = size_of(kernel_node.catalog(), handle.id)
    assert counted(tally, ARCHIVED_BYTES) >= len(CONTENT)
    assert 0 < size < len(CONTENT)
    assert (counted(tally, UPLOADED_BYTES), counted(tally, DOWNLOADED_BYTES)) == (size, 0)

    restore(box, handle)
    assert (counted(tally, CACHE_LOOKUPS, "hit"), counted(tally, CACHE_LOOKUPS, "miss")) == (1, 0)

    for archive in kernel_node.layout.cache.glob("*.sqsh"):
        archive.unlink()
    restore(box, handle)
    assert (counted(tally, CACHE_LOOKUPS, "hit"), counted(tally, CACHE_LOOKUPS, "miss")) == (1, 1)
    assert counted(tally, DOWNLOADED_BYTES) == size


def test_wakes_are_counted_by_the_source_of_the_files(kernel_node: Node) -> None:
    tally = Tally()
    first = kernel_node.sandbox("woken", meter=tally)
    assert (counted(tally, WAKES, "afresh"), counted(tally, WAKES, "here")) == (1, 0)
    first.wake()
    first.close()
    kernel_node.sandbox("woken", meter=tally)
    assert (counted(tally, WAKES, "afresh"), counted(tally, WAKES, "here")) == (1, 1)
