"""Soak test: random calls under random kills. Nothing is lost, and nothing comes back.

    make soak                                   five minutes for each mount driver that is offered
    make soak SOAK_S=60 SOAK_SEED=7             shorter, with the calls and kills of an earlier run (it prints its seed)

The ordinary tests include a few seconds of it. The same seed repeats the calls and kills, but not their exact times,
which depend on the machine.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from actors.node import driver_choice
from actors.node.drivers import Driver
from tests.soak.caller import Caller
from tests.soak.evidence import evidence
from tests.soak.killer import Killer
from tests.support.service import running

SEED = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(2**32))
SOAK_S = float(os.environ.get("SOAK_S") or 300)
KILL_EVERY_S = float(os.environ.get("SOAK_KILL_EVERY_S") or 3)
SHORT_S = 20.0
CALLERS = 2
_ENDS_S = 400


def soak(folder: Path, driver: str, length_s: float, record: Callable[[str, object], None]) -> None:
    """One run on a service of its own, of which nothing may be left."""
    rng = random.Random(f"{SEED} {driver}")
    on_sleep = rng.choice(["keep", "backup"])
    env = {"HOLDFAST_DRIVER": driver, "HOLDFAST_SLEEP_AFTER_S": "1", "HOLDFAST_ON_SLEEP": on_sleep}
    print(f"SOAK_SEED={SEED} driver={driver} on_sleep={on_sleep} length_s={length_s:g}")
    failures: list[BaseException] = []
    ending = threading.Event()
    with running(folder / "home", folder / "data", env=env) as service, ExitStack() as clients:
        with Killer(service, random.Random(rng.random()), every_s=KILL_EVERY_S) as killer:
            callers = [
                Caller(
                    clients.enter_context(service.client()),
                    f"soak-{number}",
                    random.Random(rng.random()),
                    killer,
                )
                for number in range(CALLERS)
            ]

            def act(caller: Caller) -> None:
                try:
                    while not ending.is_set():
                        caller.act()
                    killer.stop()
                    caller.finish()
                except BaseException as e:
                    failures.append(e)
                    print(evidence(service))
                    ending.set()

            threads = [threading.Thread(target=act, args=(caller,), daemon=True) for caller in callers]
            for thread in threads:
                thread.start()
            ending.wait(length_s)
            ending.set()
            deadline = time.monotonic() + _ENDS_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        done = sum((caller.done for caller in callers), Counter[str]())
        said = {"done": dict(done), "killed": dict(killer.killed), "unknown": sum(caller.unknown for caller in callers)}
        print(said)
        for name, value in said.items():
            record(name, value)
        if failures:
            print("\n".join(killer.log[-30:]))
            raise failures[0]
        assert not any(thread.is_alive() for thread in threads), "a call has no end"


@pytest.mark.timeout(300)
def test_nothing_is_lost_in_a_few_seconds_of_random_kills(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    soak(tmp_path, "auto", SHORT_S, record_property)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 1000)
@pytest.mark.parametrize("driver", list(Driver))
def test_nothing_is_lost_and_nothing_comes_back_under_random_kills(
    tmp_path: Path, driver: Driver, record_property: Callable[[str, object], None]
) -> None:
    obstacle = driver_choice.verdict(driver, tmp_path / "verdicts").reason
    if obstacle is not None:
        pytest.skip(f"{driver} is not offered: {obstacle}")
    soak(tmp_path, driver.value, SOAK_S, record_property)
