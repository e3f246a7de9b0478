"""What holds for every test: a time limit by kind, nothing left on the node, and no silent lack of a mount driver."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from actors.node import driver_choice, mounting
from actors.node.drivers import Driver
from storage.config import BucketConfig
from tests.support.mount_leaks import nothing_leaks
from tests.support.s3 import embedded_s3
from tests.support.sandboxes import Node

ALLOW_MISSING_DRIVERS = "HOLDFAST_ALLOW_MISSING_DRIVERS"
_HERE = Path(__file__).parent
_TIME_LIMITS_S = {"unit": 30, "contract": 120, "integration": 120, "faults": 180}

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test without a limit of its own the one of its kind; puts those last that share a service.

    It runs to the end of the session, and would take processor time from the others.
    """
    items.sort(key=lambda item: "acceptance" in item.path.parts)
    for item in items:
        folder = item.path.relative_to(_HERE).parts[0] if item.path.is_relative_to(_HERE) else ""
        limit_s = _TIME_LIMITS_S.get(folder)
        if limit_s is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit_s))


@pytest.fixture(params=list(Driver))
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """Every mount driver in turn. One that cannot mount here fails the test, unless the node is allowed to lack it.

    That includes one that is not offered because it fails a trial: what surrounds it has to be right all the same.
    """
    driver = Driver(request.param)
    obstacle = driver_choice.verdict(driver, tmp_path_factory.getbasetemp().resolve() / "verdicts").obstacle
    if obstacle is not None:
        if ALLOW_MISSING_DRIVERS in os.environ:
            pytest.skip(obstacle)
        pytest.fail(obstacle)
    return driver


@pytest.fixture(scope="session")
def best_driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The best mount driver that is offered here."""
    best = driver_choice.choose("auto", tmp_path_factory.getbasetemp().resolve() / "verdicts")
    assert best is not None, "no mount driver is offered here; `holdfast doctor` says why"
    return best


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder under which the test may leave no mount and no loop device; nor may it leave a child process."""
    with nothing_leaks(tmp_path):
        try:
            yield tmp_path
        finally:
            mounting.sweep(tmp_path)


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketConfig]:
    """A real S3 server on this machine that checks signatures."""
    with embedded_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server.config


@pytest.fixture
def node(scratch: Path, bucket: BucketConfig, driver: Driver) -> Iterator[Node]:
    """A node with each driver in turn."""
    with Node(scratch / "data", bucket, driver) as made:
        yield made.alone_in_the_bucket()


@pytest.fixture
def kernel_node(scratch: Path, bucket: BucketConfig, best_driver: Driver) -> Iterator[Node]:
    """A node with the best driver, for what does not depend on the driver."""
    with Node(scratch / "data", bucket, best_driver) as made:
        yield made.alone_in_the_bucket()
