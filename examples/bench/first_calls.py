"""Measures the first call of a new sandbox, beside a Ray actor that does nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Idle
from bench.samples import Contestant, Row, interleaved
from bench.service import Holdfast, running

NO_PRESTART = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
"""Settings of Ray that keep it from starting a worker before it is needed."""
_REPLACED_S = 4.0
EMPTY_ACTOR = "an empty Ray actor"


def with_a_waiting_worker(holdfast: Holdfast, *, rounds: int) -> Row:
    """The first file and the first command of new sandboxes while a warm worker waits."""

    def first_file() -> None:
        url = f"/v1/sandbox/{holdfast.new_name()}/file/workspace/a"
        holdfast.api.put(url, content=b"a")

    # A used worker is replaced within the pause, and the new one loads everything.
    contestants = {
        "file": Contestant(first_file, before=lambda: time.sleep(_REPLACED_S)),
        "command": Contestant(
            lambda: holdfast.execute(holdfast.new_name(), "true"), before=lambda: time.sleep(_REPLACED_S)
        ),
    }
    row = Row("any", "first call of a new sandbox, a worker waits", ("file",))
    return interleaved(row, contestants, rounds=rounds, stored=lambda: 0)


def without_a_worker(folder: Path, limits: EmptyActors, *, rounds: int) -> Row:
    """The first command of new sandboxes for which Ray has to start a process; beside an actor that does nothing."""
    row = Row("any", "first call of a new sandbox, no worker waits", (EMPTY_ACTOR,), reach=1.5)
    with running(folder, HOLDFAST_WARM_WORKERS="0", **NO_PRESTART) as holdfast:
        command = Contestant(
            lambda: holdfast.execute(holdfast.new_name(), "true"), before=lambda: time.sleep(_REPLACED_S)
        )
        interleaved(row, {"holdfast": command}, rounds=rounds, stored=lambda: 0)
    row.times_s[EMPTY_ACTOR] = limits.create_s
    return row


@dataclass(frozen=True, slots=True)
class EmptyActors:
    """Ray actors that do nothing, in a Ray of their own: times in s, and what they take while idle."""

    create_s: list[float]
    """From the creation of one to its first answer."""
    call_s: list[float]
    many_s: list[float]
    """From the creation of many at once to all first answers."""
    idle: Idle

    @classmethod
    def measured(cls, *, rounds: int, many: int, idlers: int) -> EmptyActors:
        """Measures them. `idlers` is the number of idle actors."""
        program = str(Path(__file__).with_name("noop_actor.py"))
        environment = {**os.environ, **NO_PRESTART, "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, program, str(rounds), str(many), str(idlers)]
        said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
        found = json.loads(said.stdout)
        return cls(**found | {"idle": Idle(**found["idle"])})
