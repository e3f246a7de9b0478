"""Stored layers: promoted, uploaded, shared, and collected; in full if anything is doubtful."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from storage import keys
from storage.catalog import BackupCatalog
from storage.collect import CollectionReport, collect
from storage.errors import LayersUnusableError, ObjectMissingError, StoreUnavailableError
from storage.layers import LONGEST_CREATION_S, NewLayers, add_file, layer_at
from storage.metadata import BackupRecord, StoredLayer
from storage.s3 import S3ObjectStore
from storage.store import list_all
from storage.transfer import download, upload
from tests.support.faulty_store import FaultyStore
from tests.support.mount_leaks import wait_until
from tests.support.s3 import FAST
from tests.support.sandboxes import Background

KEY = SecretStr("signing key")
NOW = datetime.now(UTC).replace(microsecond=0)
TENANT = "acme"
on_both = pytest.mark.parametrize("bench", ["rclone", "moto"], indirect=True)


@dataclass(slots=True)
class Bench:
    """A bucket of a real server with one full backup, `base`."""

    store: S3ObjectStore
    faulty: FaultyStore
    catalog: BackupCatalog
    folder: Path
    base: BackupRecord

    def file(self, content: bytes) -> Path:
        path = self.folder / str(uuid.uuid4())
        path.write_bytes(content)
        return path

    def full(self, content: bytes, **fields: Any) -> BackupRecord:
        backup_id = str(uuid.uuid4())
        sent = upload(
            self.store,
            keys.archive(backup_id),
            self.file(content),
            config=FAST,
            progress=lambda _: None,
            cancelled=threading.Event(),
        )
        return self.commit(
            backup_id,
            size_bytes=sent.size_bytes,
            sha256=sent.sha256,
            part_bytes=sent.part_bytes,
            parts=[part.sha256 for part in sent.parts],
            etag=sent.etag,
            **fields,
        )

    def commit(self, backup_id: str, **fields: Any) -> BackupRecord:
        record = {"id": backup_id, "dir": "/workspace", "ttl": 3600, "created_at": NOW, "version": 1}
        record |= {"tenant": TENANT, "sandbox": "box"}
        return self.catalog.commit(BackupRecord.model_validate({**record, **fields})).record

    def layers(self, base: BackupRecord, backup_id: str | None = None, **options: Any) -> NewLayers:
        return NewLayers(self.catalog.store, TENANT, backup_id or str(uuid.uuid4()), base, **options)

    def add(self, layers: NewLayers, content: bytes) -> StoredLayer:
        return add_file(
            layers,
            self.store,
            self.file(content),
            config=FAST,
            progress=lambda _: None,
            cancelled=threading.Event(),
        )

    def on(self, base: BackupRecord, content: bytes, **fields: Any) -> BackupRecord:
        """A committed incremental backup."""
        backup_id = str(uuid.uuid4())
        layers = self.layers(base, backup_id)
        layers.hold()
        own = self.add(layers, content)
        layers.check()
        digests = {name: getattr(own, name) for name in ("size_bytes", "sha256", "part_bytes", "parts")}
        return self.commit(backup_id, version=2, layers=layers.layers, parent=base.id, **digests, **fields)

    def fetched(self, record: BackupRecord) -> list[bytes]:
        contents = []
        for layer in record.stack:
            path = self.file(b"")
            key = keys.layer(TENANT, layer.sha256)
            options: dict[str, Any] = {"config": FAST, "progress": lambda _: None, "cancelled": threading.Event()}
            download(self.store, key, path, expected=layer.digest, **options)
            contents.append(path.read_bytes())
        return contents

    def collect(self, *, after: timedelta = timedelta(days=2), dry_run: bool = False) -> CollectionReport:
        return collect(self.catalog, now=NOW + after, grace_s=86_400, dry_run=dry_run)

    def objects(self, prefix: str = "") -> set[str]:
        return {row.key for row in list_all(self.store, prefix)}


@pytest.fixture(params=["rclone"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    name = {"rclone": "emptied_rclone_config", "moto": "moto_config"}[request.param]
    store = S3ObjectStore(request.getfixturevalue(name), transfer=FAST)

    def clear() -> None:
        for row in list(list_all(store, "")):
            store.delete(row.key)

    clear()
    faulty = FaultyStore(store)
    made = Bench(store, faulty, BackupCatalog(faulty, KEY), tmp_path, base=None)  # type: ignore[arg-type]
    made.base = made.full(b"base", ttl=1e9)
    yield made
    clear()


def promote(layers: NewLayers) -> None:
    """Holds the layers of a full backup until its archive is promoted."""
    layers.hold()
    layers.check()


@on_both
def test_a_stack_of_layers_is_stored_and_read_back(bench: Bench) -> None:
    content = b"base" * 3_000_000  # more than one part
    first = bench.on(bench.full(content, ttl=1e9), b"one", ttl=1e9)
    second = bench.on(first, b"two", ttl=1e9)
    assert bench.fetched(second) == [content, b"one", b"two"]
    assert (second.depth, second.size_bytes, second.total_bytes) == (3, 3, 12_000_006)
    again = bench.catalog.get(TENANT, second.id)
    assert again == second
    assert not bench.objects(keys.BACKUPS_PREFIX) & {keys.archive(first.id), keys.archive(second.id)}
    assert bench.collect() == CollectionReport(dry_run=False)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_deleting_any_backup_leaves_all_others_whole_and_at_last_nothing(
    bench: Bench, order: tuple[int, int, int]
) -> None:
    chain = [bench.base, bench.on(bench.base, b"one", ttl=1e9)]
    chain.append(bench.on(chain[1], b"two", ttl=1e9))
    left = list(chain)
    for number in order:
        assert bench.catalog.delete(TENANT, chain[number].id)
        left.remove(chain[number])
        bench.collect()
        for record in left[1:] if left[:1] == [bench.base] else left:
            assert bench.fetched(record)[1:] == [b"one", b"two"][: record.depth - 1]
    assert bench.objects() == set()


def test_an_expired_backup_goes_alone(bench: Bench) -> None:
    gone = bench.on(bench.base, b"one", ttl=3600)
    stays = bench.on(gone, b"two", ttl=1e9)
    would = bench.collect(dry_run=True)
    did = bench.collect()
    assert did.expired_backups == would.expired_backups == (gone.id,)
    assert bench.fetched(stays)[1:] == [b"one", b"two"]
    assert not [key for key in bench.objects() if gone.id in key]


def test_layers_with_the_same_content_are_stored_once(bench: Bench) -> None:
    one, other = bench.on(bench.base, b"same"), bench.on(bench.base, b"same")
    key = keys.layer(TENANT, one.stack[1].sha256)
    assert one.stack == other.stack
    bench.catalog.delete(TENANT, one.id)
    bench.collect(after=timedelta(minutes=1))
    assert bench.store.head(key).size_bytes == 4


def test_a_layer_without_references_is_named_and_then_deleted(bench: Bench) -> None:
    gone = bench.on(bench.base, b"one")
    bench.catalog.delete(TENANT, gone.id)
    wanted = {keys.layer(TENANT, layer.sha256) for layer in gone.stack}
    before = bench.objects()
    report = bench.collect(dry_run=True)
    assert set(report.orphaned_layers) == wanted
    assert report.freed_bytes == gone.total_bytes
    assert bench.objects() == before
    assert set(bench.collect().orphaned_layers) == wanted
    assert bench.objects() == before - wanted


def test_what_a_dead_creation_has_left_goes_after_a_day(bench: Bench) -> None:
    before = bench.objects()
    layers = bench.layers(bench.base)
    layers.hold()
    bench.add(layers, b"never committed")
    assert len(bench.objects() - before) == 4  # two layers, two references
    bench.collect(after=timedelta(hours=23))
    assert len(bench.objects() - before) == 4
    bench.collect()
    assert bench.objects() == before


def test_a_released_creation_leaves_no_reference(bench: Bench) -> None:
    before = bench.objects()
    layers = bench.layers(bench.base)
    layers.hold()
    bench.add(layers, b"never committed")
    layers.release()
    bench.collect(after=timedelta(minutes=1))
    assert bench.objects() == before


def test_lost_references_of_a_live_backup_are_written_anew(bench: Bench) -> None:
    record = bench.on(bench.base, b"one", ttl=1e9)
    references = {keys.layer_reference(TENANT, layer.sha256, record.id) for layer in record.stack}
    for key in references:
        bench.store.delete(key)
    report = bench.collect()
    assert set(report.rebuilt_index_entries) == references
    assert report.orphaned_layers == ()
    assert references <= bench.objects()
    assert bench.fetched(record)[1:] == [b"one"]


def test_a_backup_that_lacks_a_layer_is_named(bench: Bench) -> None:
    record = bench.on(bench.base, b"one", ttl=1e9)
    bench.store.delete(keys.layer(TENANT, record.stack[0].sha256))
    assert bench.collect().without_archive == (record.id,)


def test_the_layers_of_a_backup_that_was_tampered_with_stay(bench: Bench) -> None:
    record = bench.on(bench.base, b"one", ttl=3600)
    bench.store.put(keys.metadata(record.id), record.to_json().replace(b'"ttl":3600', b'"ttl":3601'))
    report = bench.collect()
    assert (report.tampered, report.orphaned_layers) == ((record.id,), ())
    assert bench.fetched(record)[1:] == [b"one"]


def test_a_mark_keeps_new_backups_away_until_it_is_a_day_old(bench: Bench) -> None:
    record = bench.on(bench.base, b"one", ttl=1e9)
    mark = keys.layer_mark(TENANT, record.stack[0].sha256, str(uuid.uuid4()))
    bench.store.put(mark, b"")
    with pytest.raises(LayersUnusableError, match="collector"):
        bench.layers(record).hold()
    bench.collect(after=timedelta(hours=23))
    assert mark in bench.objects()
    bench.collect(after=timedelta(hours=47))
    assert mark not in bench.objects()
    bench.layers(record).hold()


def test_a_deletion_without_an_answer_leaves_the_mark(bench: Bench) -> None:
    record = bench.on(bench.base, b"one")
    bench.catalog.delete(TENANT, record.id)
    key = keys.layer(TENANT, record.stack[0].sha256)
    bench.faulty.fail("delete", ".sqsh", after=False)
    with pytest.raises(StoreUnavailableError):
        bench.collect()
    assert [found for found in bench.objects(keys.layers_prefix(TENANT)) if "/dying/" in found]
    with pytest.raises(LayersUnusableError):
        bench.layers(record).hold()
    bench.collect()
    assert key not in bench.objects()


def test_a_layer_that_is_missing_or_has_another_size_is_not_built_on(bench: Bench) -> None:
    record = bench.on(bench.base, b"one")
    key = keys.layer(TENANT, record.stack[1].sha256)
    bench.store.put(key, b"another one")
    with pytest.raises(LayersUnusableError, match="11 bytes"):
        bench.layers(record).hold()
    bench.store.delete(key)
    with pytest.raises(LayersUnusableError, match="missing"):
        bench.layers(record).hold()


@on_both
def test_an_archive_that_is_not_the_recorded_one_is_not_promoted(bench: Bench) -> None:
    layer = keys.layer(TENANT, bench.base.stack[0].sha256)
    bench.store.put(keys.archive(bench.base.id), b"bose")
    with pytest.raises(LayersUnusableError, match="uploaded"):
        promote(bench.layers(bench.base))
    bench.store.delete(keys.archive(bench.base.id))
    with pytest.raises(LayersUnusableError):
        promote(bench.layers(bench.base))
    assert layer not in bench.objects()


def test_a_copy_that_the_store_makes_wrongly_is_found(bench: Bench) -> None:
    class Wrong(FaultyStore):
        def copy(self, source: str, target: str, *, if_match: str) -> str:
            return bench.store.put(target, b"")

    layers = NewLayers(Wrong(bench.store), TENANT, str(uuid.uuid4()), bench.base)
    with pytest.raises(LayersUnusableError, match="0 bytes"):
        promote(layers)
    layers.release()
    bench.collect(after=timedelta(minutes=1))
    promote(bench.layers(bench.base))


@pytest.mark.parametrize("after", [False, True])
def test_a_copy_that_fails_means_a_full_backup(bench: Bench, after: bool) -> None:
    bench.faulty.fail("copy", "data.sqsh", after=after)
    with pytest.raises(LayersUnusableError):
        promote(bench.layers(bench.base))


@pytest.fixture
def slow(bench: Bench) -> Iterator[tuple[NewLayers, threading.Event]]:
    """Layers that are held while the store copies the archive of `base`, and the event at which it goes on."""
    going = threading.Event()

    class Slow(FaultyStore):
        def copy(self, source: str, target: str, *, if_match: str) -> str:
            assert going.wait(20)
            return bench.store.copy(source, target, if_match=if_match)

    layers = NewLayers(Slow(bench.store), TENANT, str(uuid.uuid4()), bench.base)
    layers.hold()
    yield layers, going
    going.set()
    with contextlib.suppress(LayersUnusableError):
        layers.check()


def test_a_promotion_goes_on_beside_the_upload_and_ends_before_the_commit(
    bench: Bench, slow: tuple[NewLayers, threading.Event]
) -> None:
    layers, going = slow
    base = keys.layer(TENANT, bench.base.stack[0].sha256)
    adding = Background(lambda: bench.add(layers, b"one"))
    own = keys.layer(TENANT, hashlib.sha256(b"one").hexdigest())
    assert wait_until(lambda: own in bench.objects(), timeout_s=20)
    assert not adding.ended and base not in bench.objects()
    going.set()
    adding.result()
    assert base in bench.objects() and len(layers.layers) == 2


def test_references_are_released_after_a_promotion_that_is_under_way(
    bench: Bench, slow: tuple[NewLayers, threading.Event]
) -> None:
    layers, going = slow
    base = keys.layer(TENANT, bench.base.stack[0].sha256)
    layers.release()
    assert [key for key in bench.objects() if "/refs/" in key]
    going.set()
    assert wait_until(lambda: not [key for key in bench.objects() if "/refs/" in key], timeout_s=20)
    assert bench.collect(after=timedelta(minutes=1)).orphaned_layers == (base,)


def test_only_a_signed_backup_of_the_same_tenant_is_built_on(bench: Bench) -> None:
    before = bench.objects()
    foreign = bench.full(b"foreign", tenant="other")
    unsigned = bench.base.model_copy(update={"signature": None})
    undigested = bench.full(b"undigested").model_copy(update={"parts": None})
    for base in (foreign, unsigned, undigested):
        with pytest.raises(LayersUnusableError):
            bench.layers(base).hold()
    assert bench.objects(keys.LAYERS_ROOT) - before == {
        key for key in bench.objects(keys.LAYERS_ROOT) if "/sandboxes/" in key and key not in before
    }


def test_a_layer_that_is_the_newest_already_is_not_added_again(bench: Bench) -> None:
    first = bench.on(bench.base, b"one", ttl=1e9)
    again = bench.on(first, b"one", ttl=1e9)
    assert again.layers == first.layers
    assert bench.catalog.delete(TENANT, first.id)
    bench.collect()
    assert bench.fetched(again) == [b"base", b"one"]


def test_a_layer_that_lies_under_another_one_is_not_laid_over_it(bench: Bench) -> None:
    layers = bench.layers(bench.on(bench.on(bench.base, b"one"), b"two"))
    layers.hold()
    with pytest.raises(LayersUnusableError):
        bench.add(layers, b"one")
    onto_base = bench.layers(bench.base)
    onto_base.hold()
    with pytest.raises(LayersUnusableError):
        bench.add(onto_base, b"base")


def test_a_creation_that_lasts_too_long_does_not_commit(bench: Bench) -> None:
    at = 0.0
    layers = bench.layers(bench.base, clock=lambda: at)
    layers.hold()
    at = LONGEST_CREATION_S
    layers.check()
    at += 1
    with pytest.raises(LayersUnusableError):
        layers.check()


def test_a_creation_that_lasts_too_long_by_the_stores_clock_does_not_commit(bench: Bench) -> None:
    """As on a virtual machine that was paused."""
    store = Dated(bench.store)
    layers = NewLayers(store, TENANT, str(uuid.uuid4()), bench.base)
    layers.hold()
    layers.check()
    store.ahead = timedelta(seconds=LONGEST_CREATION_S + 60)
    with pytest.raises(LayersUnusableError):
        layers.check()


@dataclass(slots=True)
class Dated:
    """A store whose clock is ahead."""

    inner: S3ObjectStore
    ahead: timedelta = timedelta()

    def find_now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_failed_upload_leaves_the_same_layer_of_another_backup_alone(bench: Bench) -> None:
    record = bench.on(bench.base, b"one")
    key, cancelled = keys.layer(TENANT, record.stack[1].sha256), threading.Event()
    cancelled.set()
    options: dict[str, Any] = {"config": FAST, "progress": lambda _: None, "cancelled": cancelled}
    with pytest.raises(Exception, match="cancelled"):
        upload(bench.store, key, bench.file(b"one"), shared=True, **options)
    assert bench.store.get(key).data == b"one"
    with pytest.raises(Exception, match="cancelled"):
        upload(bench.store, key, bench.file(b"one"), **options)
    with pytest.raises(ObjectMissingError):
        bench.store.head(key)


@on_both
def test_the_digests_of_a_file_are_those_of_its_upload(bench: Bench) -> None:
    path = bench.file(b"x" * (2 * FAST.part_bytes + 7))
    layer = layer_at(path, FAST)
    sent = upload(bench.store, "x", path, config=FAST, progress=lambda _: None, cancelled=threading.Event())
    assert (layer.sha256, layer.size_bytes, layer.part_bytes) == (sent.sha256, sent.size_bytes, sent.part_bytes)
    assert layer.parts == [part.sha256 for part in sent.parts]
    assert layer_at(bench.file(b""), FAST).size_bytes == 0


def test_a_lifecycle_rule_over_layers_turns_incremental_backups_off(bench: Bench) -> None:
    class Ruled(FaultyStore):
        def rules_over_layers(self) -> tuple[str, ...]:
            return ("theirs",)

    before = bench.objects()
    with pytest.raises(LayersUnusableError, match="theirs"):
        NewLayers(Ruled(bench.store), TENANT, str(uuid.uuid4()), bench.base).hold()
    assert bench.objects() == before
