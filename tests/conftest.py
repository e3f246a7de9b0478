"""Rules for every test: a time limit per folder, no leftovers on the node, and no mount driver skipped silently."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from actors.node import driver_choice, mounting
from actors.node.drivers import Driver
from storage.config import BucketConfig
from tests.support.mount_leaks import nothing_leaks
from tests.support.s3 import embedded_s3
from tests.support.sandboxes import Node

ALLOW_MISSING_DRIVERS = "HOLDFAST_ALLOW_MISSING_DRIVERS"
_HERE = Path(__file__).parent
_TIME_LIMITS_S = {"unit": 120, "contract": 300, "integration": 300, "faults": 300, "acceptance": 600}
"""They end what hangs, also on a machine that is several times slower than ours."""

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each test without its own time limit that of its folder. Runs the acceptance tests last, and marks them.

    Their shared service lives until the session ends, and would take processor time from the other tests.
    """
    items.sort(key=lambda item: "acceptance" in item.path.parts)
    for item in items:
        folder = _folder(item)
        if folder in ("acceptance", "soak"):
            item.add_marker(pytest.mark.acceptance)
        limit_s = _TIME_LIMITS_S.get(folder)
        if limit_s is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit_s))


def _folder(item: pytest.Item) -> str:
    """The folder of a test below this one; empty if it is elsewhere."""
    return item.path.relative_to(_HERE).parts[0] if item.path.is_relative_to(_HERE) else ""


@pytest.fixture(autouse=True)
def _a_slow_bucket_does_not_hang(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets sandboxes of this process wait longer for the bucket of a busy machine than for one that hangs."""
    if _folder(request.node) in ("integration", "faults"):
        for module in ("time_limit", "s3_client"):
            monkeypatch.setattr(f"storage.{module}.MOMENTS_S", 30.0)


@pytest.fixture(params=list(Driver))
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """Each mount driver in turn. A driver that cannot mount here fails the test, unless the node may lack it.

    Includes a driver that is not offered because it fails a trial: the code around it must still work.
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
    """The best mount driver offered here."""
    best = driver_choice.choose("auto", tmp_path_factory.getbasetemp().resolve() / "verdicts")
    assert best is not None, "no mount driver is offered here; `holdfast doctor` says why"
    return best


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder for the test, which must leave no mount, loop device or child process behind."""
    with nothing_leaks(tmp_path):
        try:
            yield tmp_path
        finally:
            mounting.sweep(tmp_path)


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketConfig]:
    """The bucket of a real S3 server on this machine, which checks signatures."""
    with embedded_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server.config


@pytest.fixture
def node(scratch: Path, bucket: BucketConfig, driver: Driver) -> Iterator[Node]:
    """A node with each driver in turn."""
    with Node(scratch / "data", bucket, driver) as made:
        yield made.alone_in_the_bucket()


@pytest.fixture
def kernel_node(scratch: Path, bucket: BucketConfig, best_driver: Driver) -> Iterator[Node]:
    """A node with the best driver, for tests that do not depend on the driver."""
    with Node(scratch / "data", bucket, best_driver) as made:
        yield made.alone_in_the_bucket()
