"""How long Ray takes to make an actor that does nothing, while no worker waits: one time in seconds per line."""

from __future__ import annotations

import os
import sys
import time

os.environ |= {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0", "RAY_AUTH_MODE": "disabled"}

import ray


@ray.remote(num_cpus=0)
class Noop:
    """Answers."""

    def ping(self) -> bool:
        return True


ray.init(num_cpus=0, include_dashboard=False, log_to_driver=False, configure_logging=False)
actors = []
for number in range(int(sys.argv[1])):
    time.sleep(1)
    began = time.perf_counter()
    actor = Noop.options(name=f"noop-{number}").remote()
    ray.get(actor.ping.remote())
    print(time.perf_counter() - began, flush=True)
    actors.append(actor)
