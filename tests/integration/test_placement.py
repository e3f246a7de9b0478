"""On a cluster of several nodes a sandbox wakes where its files are. Real Ray, three nodes on one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from actors.node.cgroup import Cgroup
from actors.node.mounting import sweep
from actors.sandbox import service_cgroup
from storage.config import BucketConfig
from tests.support.service import PROJECT, clean_environment

DRIVER = Path(__file__).parent / "drivers" / "placement.py"
LIMIT_S = 240


@pytest.mark.timeout(LIMIT_S + 60)
def test_a_sandbox_that_slept_wakes_on_the_node_that_has_its_files(tmp_path: Path, bucket: BucketConfig) -> None:
    data_dir = tmp_path / "data"
    keys = (bucket.access_key_id.get_secret_value(), bucket.secret_access_key.get_secret_value())
    settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(PROJECT)}
    try:
        done = subprocess.run(
            [sys.executable, DRIVER, data_dir, str(bucket.endpoint_url), bucket.bucket, *keys],
            env=clean_environment(tmp_path, settings),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    finally:
        Cgroup.remove_tree(service_cgroup(data_dir))
        assert sweep(data_dir) == []
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    before, *after = json.loads(done.stdout.splitlines()[-1])
    assert sorted(Counter(before).values()) == [2, 2]
    assert after == [before, before]
