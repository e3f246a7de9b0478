"""A plugin for pytest-xdist: one process runs every acceptance test of the shared service, in order.

Each file whose tests start services of their own stays in one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

OWN_SERVICES = frozenset({
    "test_container_matrix", "test_embedded_store", "test_full_disk", "test_gc", "test_image",
    "test_missing_directories", "test_mount_drivers", "test_serve_app", "test_sleep", "test_soak",
    "test_start_failures", "test_stop", "test_two_services",
})  # fmt: skip
"""Files without a test of the shared service."""


class ByService(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """Spreads files over processes, and takes all tests of the shared service for one file."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return file if Path(file).stem in OWN_SERVICES else "the shared service"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByService:
    return ByService(config, log)
