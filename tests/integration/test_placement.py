"""On a cluster of several nodes a sandbox wakes where its files are. Real Ray, three nodes on one machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from actors.node.cgroup import Cgroup
from actors.node.mounting import sweep
from actors.sandbox import service_cgroup
from storage.config import BucketConfig
from tests.support.drivers import reported

DRIVER = Path(__file__).parent / "drivers" / "placement.py"
LIMIT_S = 240


@pytest.mark.timeout(LIMIT_S + 60)
def test_a_sandbox_that_slept_wakes_on_the_node_that_has_its_files(tmp_path: Path, bucket: BucketConfig) -> None:
    data_dir = tmp_path / "data"
    keys = (bucket.access_key_id.get_secret_value(), bucket.secret_access_key.get_secret_value())
    settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
    try:
        before, *after = reported(
            DRIVER,
            data_dir,
            bucket.endpoint_url,
            bucket.bucket,
            *keys,
            home=tmp_path,
            env=settings,
            timeout_s=LIMIT_S,
        )
    finally:
        Cgroup.remove_tree(service_cgroup(data_dir))
        assert sweep(data_dir) == []
    assert sorted(Counter(before).values()) == [2, 2]
    assert after == [before, before]
