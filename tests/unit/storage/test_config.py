"""Storage settings: validated, picklable, and without secrets in their representation."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.config import MAX_PARTS, MIB, BucketConfig, TransferConfig
from storage.digests import ArchiveDigest, part_count

GOOD: dict[str, Any] = {
    "bucket": "backups",
    "endpoint_url": "https://account.r2.cloudflarestorage.com",
    "access_key_id": "AKIDAKIDAKID",
    "secret_access_key": "s3cr3t-s3cr3t",
}


def test_settings_survive_pickling_and_hide_their_secrets() -> None:
    config = BucketConfig(**GOOD)
    assert pickle.loads(pickle.dumps(config)) == config
    assert pickle.loads(pickle.dumps(TransferConfig())) == TransferConfig()
    assert "s3cr3t" not in f"{config!r}{config}{config.model_dump_json()}"
    assert "AKIDAKIDAKID" not in f"{config!r}{config}"
    assert config.region == "auto"


@pytest.mark.parametrize(
    "change",
    [
        {"bucket": ""},
        {"bucket": "a/b"},
        {"bucket": "UPPER"},
        {"endpoint_url": "account.r2.cloudflarestorage.com"},
        {"endpoint_url": "ftp://host"},
        {"endpoint_url": "https://"},
        {"endpoint_url": "https://user:s3cr3t@host"},
        {"endpoint_url": "https://host/path"},
        {"endpoint_url": "https://host?x=s3cr3t"},
        {"endpoint_url": "https://host#x"},
        {"endpoint_url": "https://host:port"},
        {"endpoint_url": "http://example.com"},
        {"endpoint_url": "http://169.254.169.254"},
        {"endpoint_url": None},
        {"region": "eu/../1"},
        {"access_key_id": ""},
        {"secret_access_key": ""},
        {"secret": "unknown field"},
    ],
)
def test_bad_settings_are_refused_without_repeating_them(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        BucketConfig(**{**GOOD, **change})
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint_url": "http://127.0.0.1:9000"},
        {"endpoint_url": "http://[::1]:9000"},
        {"endpoint_url": "http://localhost:9000/"},
        {"endpoint_url": "http://minio:9000", "allow_http": True},
        {"endpoint_url": None, "region": "eu-central-1"},
    ],
)
def test_good_settings_are_accepted(change: dict[str, Any]) -> None:
    assert "/" not in BucketConfig(**{**GOOD, **change}).host


@pytest.mark.parametrize(
    "change",
    [
        {"part_bytes": 5 * MIB - 1},
        {"concurrency": 0},
        {"attempts": 0},
        {"idle_timeout_s": 0},
        {"idle_timeout_s": float("nan")},
        {"url_ttl_s": 8 * 86_400},
        {"backoff_initial_s": 3, "backoff_max_s": 2},
    ],
)
def test_bad_transfer_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TransferConfig(**change)


@given(st.integers(0, 40 * 2**40))
def test_no_archive_needs_more_parts_than_s3_allows(size_bytes: int) -> None:
    part_bytes = TransferConfig().part_bytes_for(size_bytes)
    assert 1 <= part_count(size_bytes, part_bytes) <= MAX_PARTS
    assert part_bytes % MIB == 0


def test_part_digests_that_do_not_fit_the_size_are_ignored() -> None:
    assert ArchiveDigest(10, part_bytes=5, parts=("a", "b")).has_parts
    assert not ArchiveDigest(11, part_bytes=5, parts=("a", "b")).has_parts
    assert not ArchiveDigest(10, parts=("a", "b")).has_parts
