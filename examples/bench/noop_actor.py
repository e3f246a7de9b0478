"""Measures how long Ray takes to make an actor that does nothing: a time in seconds per line. For `first_calls.py`."""

from __future__ import annotations

import sys
import time

import ray


@ray.remote(num_cpus=0)
class Noop:
    """An actor that only answers."""

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
