"""Nodes over two stores: rclone, without conditional writes, and moto, with them and so with fences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.node.drivers import Driver
from storage.config import BucketConfig
from tests.support.s3 import moto_s3
from tests.support.sandboxes import Node


@pytest.fixture(scope="session")
def moto_config() -> Iterator[BucketConfig]:
    with moto_s3() as config:
        yield config


@pytest.fixture(params=["rclone", "moto"])
def any_store(
    request: pytest.FixtureRequest, bucket: BucketConfig, moto_config: BucketConfig, scratch: Path, best_driver: Driver
) -> Iterator[Node]:
    """A node with each kind of store in turn, alone in its bucket."""
    config = {"rclone": bucket, "moto": moto_config}[request.param]
    with Node(scratch / "data", config, best_driver) as made:
        yield made.alone_in_the_bucket()
