"""Runs the tests in parts, in parallel where they can be: `python -m tests.support.in_parts tests`.

All arguments are passed to pytest. Each part runs even if an earlier one has failed.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

_CPUS = os.cpu_count() or 1
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")


@dataclass(frozen=True, slots=True)
class Part:
    """Tests that run together.

    Attributes:
        marks: the expression of markers that selects them.
        workers: number of processes that they are spread over; 0 means that they run one after the other in pytest's.
        distribution: options of pytest-xdist that say how to spread them.
    """

    name: str
    marks: str
    workers: int = 0
    distribution: tuple[str, ...] = ()

    def argv(self, python: Sequence[str]) -> list[str]:
        """The command that runs the part. `python` starts Python in a process of the part.

        Source: the documentation of pytest-xdist, "Running tests across multiple CPUs", and of execnet on "popen".
        """
        workers = ["--tx", f"{self.workers}*popen//python={shlex.join(python)}"] if self.workers else []
        marks = f"not soak and {self.marks}"
        return [sys.executable, "-m", "pytest", "-m", marks, *workers, *self.distribution]


PARTS = (
    Part("most tests", "not acceptance and not alone", 2 * _CPUS, ("--dist", "worksteal")),
    Part("acceptance", "acceptance and not alone", _CPUS, ("--dist", "loadfile", "-p", "tests.support.by_service")),
    Part("alone", "alone"),
)
"""In this order. Most tests wait for tools and servers half of the time, so there are two processes for a processor."""


def main(arguments: Sequence[str]) -> int:
    """Runs the parts; returns the exit status of the first that failed.

    A part without tests has not failed, unless there are none in any.
    """
    signal.signal(signal.SIGINT, lambda *_: None)  # pytest gets it too, and ends by itself
    python, statuses, lines = _python(), [], []
    for part in PARTS:
        began = time.monotonic()
        status = subprocess.call([*part.argv(python), *arguments])
        statuses.append(status)
        lines.append(f"{part.name}: {_said(status)}, {time.monotonic() - began:.0f} s")
        if status == pytest.ExitCode.INTERRUPTED:
            break
    print(*lines, sep="\n", flush=True)
    failed = [status for status in statuses if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)]
    return (failed or [min(statuses)])[0]


def _python() -> list[str]:
    """Starts Python in a mount namespace of its own where that is permitted.

    Without it, namespaces that a test makes hold copies of the mounts of others, which then cannot be unmounted.
    """
    tried = subprocess.run([*_OWN_MOUNTS, "true"], capture_output=True, check=False)
    return [*_OWN_MOUNTS, sys.executable] if tried.returncode == 0 else [sys.executable]


def _said(status: int) -> str:
    """An exit status of pytest in words."""
    return pytest.ExitCode(status).name.lower().replace("_", " ") if status in list(pytest.ExitCode) else str(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
