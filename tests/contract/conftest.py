"""The object stores that the contract suite runs against, each with its capabilities."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from storage.config import BucketConfig
from storage.s3 import S3ObjectStore
from storage.store import ObjectStore
from tests.support.memory_store import MemoryObjectStore
from tests.support.s3 import FAST, embedded_s3, moto_s3, real_bucket


@dataclass(frozen=True, slots=True)
class Place:
    """A store, a prefix of its own in it, and the store's capabilities."""

    name: str
    store: ObjectStore
    server: BucketConfig | None
    """The settings that open the store on its server; None if it has none."""
    prefix: str
    conditional_writes: bool
    conditional_reads: bool
    checks_signatures: bool
    checks_md5: bool
    has_lifecycle: bool

    def key(self, name: str) -> str:
        return self.prefix + name

    @property
    def config(self) -> BucketConfig:
        """The settings of the server, for a test that needs one."""
        assert self.server is not None
        return self.server


@pytest.fixture(scope="session")
def rclone_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketConfig]:
    with embedded_s3(tmp_path_factory.mktemp("rclone")) as server:
        yield server.config


@pytest.fixture(scope="session")
def emptied_rclone_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketConfig]:
    """A server for tests that empty its bucket, and list all of it.

    rclone may list an object again that was written by several requests at once and then deleted, as other tests do.
    """
    with embedded_s3(tmp_path_factory.mktemp("emptied")) as server:
        yield server.config


@pytest.fixture(scope="session")
def moto_config() -> Iterator[BucketConfig]:
    with moto_s3() as config:
        yield config


def _place(name: str, request: pytest.FixtureRequest) -> Place:
    server: BucketConfig | None = None
    if name == "real":
        server = real_bucket()
        if server is None:
            pytest.skip("no HOLDFAST_TEST_BUCKET_NAME, _ACCESS_KEY_ID and _SECRET_ACCESS_KEY in the environment")
    elif name != "memory":
        server = request.getfixturevalue(f"{name}_config")
    store = S3ObjectStore(server, transfer=FAST if name != "real" else None) if server else MemoryObjectStore()
    return Place(
        name=name,
        store=store,
        server=server,
        prefix=f"contract/{uuid.uuid4()}/",
        conditional_writes=name != "rclone",
        conditional_reads=name != "rclone",
        checks_signatures=name != "moto",
        checks_md5=name != "moto",
        has_lifecycle=name != "rclone",
    )


@pytest.fixture(params=["moto", "rclone", "real"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each server in turn."""
    return _place(request.param, request)


@pytest.fixture(params=["memory", "moto", "rclone", "real"])
def any_place(request: pytest.FixtureRequest) -> Place:
    """Each store in turn, for tests that need no server."""
    return _place(request.param, request)


@pytest.fixture(params=["memory", "rclone", "real"])
def place_of_documents(request: pytest.FixtureRequest) -> Place:
    """A store with conditional writes, one without, and a real one, for tests of what is built on stores."""
    return _place(request.param, request)
