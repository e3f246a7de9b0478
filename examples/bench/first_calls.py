"""Measures the first call of a new sandbox, beside a Ray actor that does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.samples import Contestant, Row, interleaved
from bench.service import Holdfast, running

NO_PRESTART = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
"""Settings of Ray that keep it from starting a worker before it is needed."""
_REPLACED_S = 4.0


def with_a_waiting_worker(holdfast: Holdfast, *, rounds: int) -> Row:
    """The first file and the first command of new sandboxes while a warm worker waits."""

    def first_file() -> None:
        url = f"/v1/sandbox/{holdfast.new_name()}/file/workspace/a"
        holdfast.api.put(url, content=b"a").raise_for_status()

    # A used worker is replaced within the pause, and the new one loads everything.
    contestants = {
        "file": Contestant(first_file, before=lambda: time.sleep(_REPLACED_S)),
        "command": Contestant(
            lambda: holdfast.execute(holdfast.new_name(), "true"), before=lambda: time.sleep(_REPLACED_S)
        ),
    }
    row = Row("any", "first call of a new sandbox, a worker waits", "file")
    return interleaved(row, contestants, rounds=rounds, stored=lambda: 0)


def without_a_worker(folder: Path, *, rounds: int) -> Row:
    """The first command of new sandboxes for which Ray has to start a process; beside an actor that does nothing."""
    row = Row("any", "first call of a new sandbox, no worker waits", "an empty Ray actor", reach=1.5)
    with running(folder, HOLDFAST_WARM_WORKERS="0", **NO_PRESTART) as holdfast:
        command = Contestant(
            lambda: holdfast.execute(holdfast.new_name(), "true"), before=lambda: time.sleep(_REPLACED_S)
        )
        interleaved(row, {"holdfast": command}, rounds=rounds, stored=lambda: 0)
    row.times_s["an empty Ray actor"] = _empty_actors(rounds)
    return row


def _empty_actors(number: int) -> list[float]:
    """Times, in s, from creation to first answer of actors that do nothing, in a Ray of their own."""
    program = Path(__file__).with_name("noop_actor.py")
    environment = {**os.environ, **NO_PRESTART, "RAY_AUTH_MODE": "disabled"}
    said = subprocess.run(
        [sys.executable, program, str(number)], stdout=subprocess.PIPE, check=True, text=True, env=environment
    )
    return [float(line) for line in said.stdout.splitlines()]
