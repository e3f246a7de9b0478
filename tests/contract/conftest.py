"""The object stores that the contract suite runs against, each with its capabilities."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from storage.config import BucketConfig
from storage.s3 import S3ObjectStore
from storage.store import ObjectStore
from tests.support.s3 import FAST, embedded_s3, moto_s3, real_bucket


@dataclass(frozen=True, slots=True)
class Place:
    """A store, a prefix of its own in it, and the store's capabilities."""

    name: str
    store: ObjectStore
    config: BucketConfig
    prefix: str
    conditional_writes: bool
    conditional_reads: bool
    checks_signatures: bool
    checks_md5: bool
    has_lifecycle: bool

    def key(self, name: str) -> str:
        return self.prefix + name


@pytest.fixture(scope="session")
def rclone_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketConfig]:
    with embedded_s3(tmp_path_factory.mktemp("rclone")) as server:
        yield server.config


@pytest.fixture(scope="session")
def moto_config() -> Iterator[BucketConfig]:
    with moto_s3() as config:
        yield config


@pytest.fixture(params=["moto", "rclone", "real"])
def place(request: pytest.FixtureRequest) -> Place:
    config: BucketConfig | None
    if request.param == "real":
        config = real_bucket()
        if config is None:
            pytest.skip("no HOLDFAST_TEST_BUCKET_NAME, _ACCESS_KEY_ID and _SECRET_ACCESS_KEY in the environment")
    else:
        config = request.getfixturevalue(f"{request.param}_config")
    assert config is not None
    return Place(
        name=request.param,
        store=S3ObjectStore(config, transfer=FAST if request.param != "real" else None),
        config=config,
        prefix=f"contract/{uuid.uuid4()}/",
        conditional_writes=request.param != "rclone",
        conditional_reads=request.param != "rclone",
        checks_signatures=request.param != "moto",
        checks_md5=request.param != "moto",
        has_lifecycle=request.param != "rclone",
    )
