"""A cluster of a head and two nodes that take sandboxes, on this machine: where do sandboxes wake?

Arguments: where to write the report, the data folder, the bucket's endpoint, name and keys. Reports the
nodes on which the sandboxes were before they slept, and after each of two nights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray
from pydantic import SecretStr
from ray.cluster_utils import Cluster

from actors import hosts
from actors.bucket import open_catalog
from actors.client import Sandbox, get_sandbox
from actors.models import DEFAULT_TENANT
from actors.rpc import Call
from actors.settings import NodeConfig, SandboxConfig
from actors.warm_workers import SLOTS
from storage.config import BucketConfig

SLOTS_EACH = 2
NAMES = [f"placed-{number}" for number in range(2 * SLOTS_EACH)]


def main(report: str, data_dir: str, endpoint: str, bucket: str, access: str, secret: str) -> None:
    config = SandboxConfig(
        node=NodeConfig(data_dir=Path(data_dir)),
        sleep_after_s=0,
        warm_workers=0,
        bucket=BucketConfig(
            bucket=bucket,
            endpoint_url=endpoint,
            access_key_id=SecretStr(access),
            secret_access_key=SecretStr(secret),
        ),
        signing_key=SecretStr("a signing key for tests only"),
    )
    catalog = open_catalog(config)
    assert catalog is not None

    def places() -> list[str | None]:
        states = [catalog.find_state(DEFAULT_TENANT, name) for name in NAMES]
        return [found.state.cluster_node if found else None for found in states]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, resources={SLOTS: SLOTS_EACH})
        ray.init(address=cluster.address, namespace="holdfast", log_to_driver=False, configure_logging=False)
        hosts.start_service(config)
        boxes = [get_sandbox(name) for name in NAMES]
        for box in boxes:
            box.write_file("/workspace/file", box.id.encode())
        rounds = [places()]
        # Those of the two nodes in turn: left to itself Ray fills one node with the first that wake, then the other.
        order = sorted(range(len(boxes)), key=lambda number: (rounds[0][:number].count(rounds[0][number]), number))
        for _ in range(2):
            for box in boxes:
                put_to_sleep(box)
            for number in order:
                assert boxes[number].read_file("/workspace/file").decode() == NAMES[number]
            rounds.append(places())
        for box in boxes:
            box.destroy()
        Path(report).write_text(json.dumps(rounds))
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def put_to_sleep(box: Sandbox) -> None:
    Call(lambda: box.calls.actor.call_if_alive(lambda actor: actor.leave.remote(0.0), None)).result()


if __name__ == "__main__":
    main(*sys.argv[1:])
