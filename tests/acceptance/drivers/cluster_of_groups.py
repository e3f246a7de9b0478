"""A Ray cluster on this machine with one node for each group of a RayService, until standard input ends.

Standard input: a JSON line, {"report", "folder", "dashboard": port, "groups": [{"options", "environment"}, …]}. The
first group is the head; `options` are those of Ray's own test cluster, `environment` the node's. Reports two addresses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir
from ray.cluster_utils import Cluster


def main() -> None:
    wanted = json.loads(sys.stdin.readline())
    head, *workers = wanted["groups"]
    of_head = {
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": wanted["dashboard"],
        "temp_dir": wanted["folder"],
        "env_vars": head["environment"],
    }
    # Ray's test cluster always writes its address to this folder, and fails if the folder is missing.
    Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)  # type: ignore[no-untyped-call]
    cluster = Cluster(initialize_head=True, head_node_args={**of_head, **head["options"]})
    try:
        for worker in workers:
            cluster.add_node(**worker["options"], env_vars=worker["environment"])
        report = Path(wanted["report"])
        unfinished = report.with_suffix(".new")
        unfinished.write_text(json.dumps({"dashboard": f"http://{cluster.webui_url}", "address": cluster.address}))
        unfinished.replace(report)
        sys.stdin.read()
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
