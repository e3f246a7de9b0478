"""What holds for every test: a time limit by kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from storage.config import BucketConfig
from tests.support.s3 import embedded_s3

_HERE = Path(__file__).parent
_TIME_LIMITS_S = {"unit": 30, "contract": 120, "integration": 120, "faults": 180}

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test without a limit of its own the one of its kind."""
    for item in items:
        folder = item.path.relative_to(_HERE).parts[0] if item.path.is_relative_to(_HERE) else ""
        limit_s = _TIME_LIMITS_S.get(folder)
        if limit_s is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit_s))


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketConfig]:
    """A real S3 server on this machine that checks signatures."""
    with embedded_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server.config
