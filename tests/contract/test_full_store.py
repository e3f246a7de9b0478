"""A full store is told apart from one that fails, lacks an object, or refuses access."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.config import BucketConfig
from storage.errors import ObjectMissingError, StoreFullError, StoreUnavailableError
from storage.s3 import S3ObjectStore
from storage.upload import upload
from tests.support.full_disk import filled, tmpfs
from tests.support.s3 import FAST, embedded_s3, fault_proxy

ONCE = FAST.model_copy(update={"attempts": 1})
MIB = 1024 * 1024


@pytest.fixture
def small(tmp_path: Path) -> Iterator[BucketConfig]:
    """A store on a disk of 12 MiB."""
    with tmpfs(tmp_path / "disk", "size=12m") as disk, embedded_s3(disk) as server:
        yield server.config


def archive(tmp_path: Path, size_bytes: int) -> Path:
    made = tmp_path / "archive"
    made.write_bytes(os.urandom(size_bytes))
    return made


def send(store: S3ObjectStore, path: Path) -> None:
    upload(store, "backups/a/data.sqsh", path, config=ONCE, progress=lambda moved: None, cancelled=threading.Event())


@pytest.mark.parametrize("size_bytes", [13 * MIB, 40 * MIB])
def test_an_archive_that_does_not_fit_fails_because_the_store_is_full(
    small: BucketConfig, tmp_path: Path, size_bytes: int
) -> None:
    store = S3ObjectStore(small, transfer=ONCE)
    with pytest.raises(StoreFullError) as caught:
        send(store, archive(tmp_path, size_bytes))
    assert caught.value.hint and "Make room" in caught.value.hint
    send(store, archive(tmp_path, 6 * MIB))
    assert store.head("backups/a/data.sqsh").size_bytes == 6 * MIB


def test_on_a_full_disk_every_write_fails_and_reads_and_deletions_work(small: BucketConfig, tmp_path: Path) -> None:
    store = S3ObjectStore(small, transfer=ONCE)
    store.put("kept", b"x")
    assert small.folder is not None
    with filled(small.folder):
        for key in ("kept", "fresh"):
            with pytest.raises(StoreFullError):
                store.put(key, b"y" * 5000)
        for size_bytes in (1000, 2 * MIB, 6 * MIB):
            with pytest.raises(StoreFullError):
                send(store, archive(tmp_path, size_bytes))
        assert store.get("kept").data == b"x"
        with pytest.raises(ObjectMissingError):
            store.get("fresh")
        store.delete("kept")
    store.put("fresh", b"y" * 5000)


def test_a_failure_of_a_store_with_room_is_not_blamed_on_its_disk(tmp_path: Path) -> None:
    with embedded_s3(tmp_path) as server, fault_proxy(server.config) as (proxy, config):
        store = S3ObjectStore(config, transfer=ONCE)
        proxy.script("api", "500")
        with pytest.raises(StoreUnavailableError) as caught:
            store.put("a", b"x")
        assert type(caught.value) is StoreUnavailableError


def test_a_507_answer_means_a_full_store_even_without_a_local_folder(tmp_path: Path) -> None:
    with embedded_s3(tmp_path) as server, fault_proxy(server.config) as (proxy, config):
        store = S3ObjectStore(config.model_copy(update={"folder": None}), transfer=ONCE)
        proxy.script("api", "507")
        with pytest.raises(StoreFullError):
            store.put("a", b"x")
        assert not store.lacks_room(2**62)


def test_a_write_without_room_leaves_no_prefix_after_the_server_restarts(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=12m") as disk:
        with embedded_s3(disk) as server, filled(disk):
            store = S3ObjectStore(server.config, transfer=ONCE)
            with pytest.raises(StoreFullError):
                store.put("sandboxes/ghost/state.json", b"y" * 5000)
        with embedded_s3(disk) as server:
            store = S3ObjectStore(server.config, transfer=ONCE)
            assert store.list("sandboxes/", delimiter="/").prefixes == ()
            store.put("sandboxes/box/state.json", b"y")
            assert store.list("sandboxes/", delimiter="/").prefixes == ("sandboxes/box/",)
