"""Runs tests in a container with the fewest privileges: `python -m tests.support.in_container tests/acceptance`.

The container's process 1 reaps only the program that starts pytest. The tests' folders are on a volume, like a
service's data.

All arguments are passed to pytest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.container import DATA, FEWEST, Container, Privileges, running
from tests.support.service import PROJECT

_LEFT_OUT = {
    "test_container_matrix.py": "it makes containers, which takes the privileges of a machine",
    "test_image.py": "likewise; and it builds the image, which is the same everywhere",
    "test_fuzz.py": "it asks the gateway, which is the same everywhere, a thousand times",
    "test_full_disk.py": "it fills disks of its own, which are the same everywhere",
    "test_stop.py": "it waits for what hangs, for minutes, in a way that is the same everywhere",
}
"""Modules of the acceptance tests that do not run in the container too, and why."""
_LEFT_OUT_TESTS = {
    "test_sleep.py::test_calls_that_meet_a_sandbox_falling_asleep_are_served_once_each": "it asks Ray, with 2000 calls",
}
"""The same for single tests."""
_EVERY_S = 1.0


def main(arguments: Sequence[str]) -> int:
    """Runs the tests; returns the exit status of `in_parts`."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the folder is removed
    for name, reason in {**_LEFT_OUT, **_LEFT_OUT_TESTS}.items():
        print(f"left out: {name}: {reason}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="hf-tests-in-container-"))
    privileges = Privileges(FEWEST, devices=("fuse",), masked=False, cgroup_writable=True)
    try:
        argv = [sys.executable, "-m", "tests.support.in_parts", *_options(), *map(_inside, arguments)]
        environment = {"HOLDFAST_ALLOW_MISSING_DRIVERS": "1", "PYTHONPATH": str(PROJECT)}
        environment |= {"CI": os.environ["CI"]} if "CI" in os.environ else {}
        with running(folder, privileges, argv, environment=environment, folder_of_work=str(PROJECT)) as container:
            return _reported(container)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> list[str]:
    ignored = (f"--ignore={PROJECT}/tests/acceptance/{name}" for name in _LEFT_OUT)
    deselected = (f"--deselect=tests/acceptance/{name}" for name in _LEFT_OUT_TESTS)
    return ["-p", "no:cacheprovider", f"--basetemp={DATA}/tests", f"--rootdir={PROJECT}", *ignored, *deselected]


def _inside(argument: str) -> str:
    """An argument for pytest in the container, with an absolute path."""
    return str(PROJECT / argument) if (PROJECT / argument.partition("::")[0]).exists() else argument


def _reported(container: Container) -> int:
    """Shows the output of the tests while they run; returns their exit status."""
    with container.stdout.open() as said:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                container.process.wait(_EVERY_S)
            sys.stdout.write(said.read())
            sys.stdout.flush()
            if container.process.returncode is not None:
                sys.stderr.write(container.stderr.read_text())
                return container.process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
