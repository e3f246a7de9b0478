"""Measures Ray with actors that do nothing: the times, and an idle actor's memory and processor time.

For `first_calls.py`. Arguments: number of rounds, of actors made at once, and of idle actors. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray

from bench.processes import Idle

CALLS = 200


@ray.remote(num_cpus=0)
class Noop:
    """An actor that only answers."""

    def ping(self) -> int:
        """Returns the id of the actor's process."""
        return os.getpid()


def idle(number: int) -> Idle:
    """The memory and processor time of each of so many actors while nobody calls them."""
    made: list[Any] = [Noop.remote() for _ in range(number)]
    found = Idle.measured(ray.get([actor.ping.remote() for actor in made]))
    for actor in made:
        ray.kill(actor)
    return found


def seconds_to_answer(actors: Sequence[Any]) -> float:
    """Calls each actor once; returns the time until all have answered."""
    began = time.perf_counter()
    ray.get([actor.ping.remote() for actor in actors])
    return time.perf_counter() - began


def seconds_to_create(number: int) -> float:
    """Makes actors at once; returns the time until all have answered."""
    began = time.perf_counter()
    made: list[Any] = [Noop.remote() for _ in range(number)]
    seconds_to_answer(made)
    took_s = time.perf_counter() - began
    for actor in made:
        ray.kill(actor)
    return took_s


rounds, many, idlers = map(int, sys.argv[1:])
# As many processors as the service's Ray has: they decide how many processes Ray starts at once.
processors = len(os.sched_getaffinity(0))
ray.init(num_cpus=processors, include_dashboard=False, log_to_driver=False, configure_logging=False)
create_s = []
for _ in range(rounds):
    time.sleep(1)
    create_s.append(seconds_to_create(1))
actor = Noop.remote()
seconds_to_answer([actor])
call_s = [seconds_to_answer([actor]) for _ in range(CALLS)]
many_s = [seconds_to_create(many)]
print(json.dumps({"create_s": create_s, "call_s": call_s, "many_s": many_s, "idle": asdict(idle(idlers))}))
