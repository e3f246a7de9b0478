"""The signing keys of a machine: its own by default, and no backup is lost when a machine or a key is replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from actors.errors import InvalidRequestError
from actors.settings import Settings
from gateway.embedded.secrets import MachineSecrets, load_or_make
from gateway.embedded.signing_keys import KeyRing, fit_for_the_bucket, key_ring
from storage import keys
from storage.catalog import BackupCatalog
from storage.config import BucketConfig
from storage.errors import TamperedMetadataError
from storage.metadata import BackupRecord
from storage.s3 import S3ObjectStore
from storage.store import list_all
from tests.contract.test_catalog import NOW
from tests.support.s3 import FAST

ID = "7f8b6a0e-5c1d-4a52-9d1e-2b7f4f3f9a10"


@pytest.fixture
def bucket(moto_config: BucketConfig) -> Iterator[BucketConfig]:
    """An empty bucket that belongs to the operator."""
    store = S3ObjectStore(moto_config, transfer=FAST)
    for row in list(list_all(store, "")):
        store.delete(row.key)
    yield moto_config
    store.delete(keys.metadata(ID))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "secrets"


def settings(bucket: BucketConfig, **more: object) -> Settings:
    given = {
        "BACKUP_BUCKET_NAME": bucket.bucket,
        "BACKUP_BUCKET_ENDPOINT": bucket.endpoint_url,
        "R2_ACCESS_KEY_ID": bucket.access_key_id,
        "R2_SECRET_ACCESS_KEY": bucket.secret_access_key,
    }
    return Settings(**given, **more)  # type: ignore[arg-type]


def catalog(bucket: BucketConfig, ring: KeyRing) -> BackupCatalog:
    return BackupCatalog(S3ObjectStore(bucket, transfer=FAST), ring.signing, old_keys=ring.old)


def commit(bucket: BucketConfig, key: SecretStr) -> None:
    record = BackupRecord(
        id=ID, dir="/workspace", size_bytes=7, ttl=3600, created_at=NOW, version=1, tenant="default", sandbox="box"
    )
    catalog(bucket, KeyRing(key, ())).commit(record)


def started(bucket: BucketConfig, folder: Path, **more: object) -> KeyRing:
    """The keys of a machine that has started with its secrets in this folder."""
    given = settings(bucket, **more)
    return key_ring(given, load_or_make(folder, fit=lambda fresh: fit_for_the_bucket(fresh, given, folder=folder)))


def test_a_new_machine_has_its_own_key_and_does_not_trust_the_buckets_secret(
    bucket: BucketConfig, folder: Path
) -> None:
    ring = started(bucket, folder)
    assert ring.signing != bucket.secret_access_key
    assert started(bucket, folder) == ring
    commit(bucket, bucket.secret_access_key)
    with pytest.raises(TamperedMetadataError):
        catalog(bucket, ring).read(ID)


def test_a_rebuilt_machine_reads_backups_signed_with_the_buckets_secret(bucket: BucketConfig, folder: Path) -> None:
    commit(bucket, bucket.secret_access_key)
    ring = started(bucket, folder)
    assert ring.signing != bucket.secret_access_key
    assert catalog(bucket, ring).read(ID).is_signed
    assert catalog(bucket, started(bucket, folder)).read(ID).is_signed


def test_an_existing_installation_reads_backups_signed_with_the_buckets_secret(
    bucket: BucketConfig, folder: Path
) -> None:
    load_or_make(folder)
    file = folder / "secrets.json"
    kept = json.loads(file.read_text())
    del kept["reads_buckets_secret"]  # like an earlier release wrote it
    file.write_text(json.dumps(kept))
    commit(bucket, bucket.secret_access_key)
    assert catalog(bucket, started(bucket, folder)).read(ID).is_signed


def test_a_rebuilt_machine_does_not_start_without_the_old_signing_key(bucket: BucketConfig, folder: Path) -> None:
    lost = MachineSecrets.make().signing_key
    commit(bucket, lost)
    for _ in range(2):
        with pytest.raises(InvalidRequestError) as refused:
            started(bucket, folder)
        assert "HOLDFAST_SIGNING_KEY" in str(refused.value.hint)
    assert catalog(bucket, started(bucket, folder, signing_key=lost)).read(ID).is_signed


def test_a_key_can_be_replaced_without_losing_backups(bucket: BucketConfig, folder: Path) -> None:
    commit(bucket, started(bucket, folder).signing)
    first, second = SecretStr("the first key of the operator's"), SecretStr("the second")
    assert catalog(bucket, started(bucket, folder, signing_key=first)).read(ID).is_signed
    S3ObjectStore(bucket, transfer=FAST).delete(keys.metadata(ID))
    commit(bucket, first)
    ring = started(bucket, folder, signing_key=second, old_signing_keys=(first,))
    assert ring.signing == second
    assert catalog(bucket, ring).read(ID).is_signed
    with pytest.raises(TamperedMetadataError):
        catalog(bucket, started(bucket, folder, signing_key=second)).read(ID)
