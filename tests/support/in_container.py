"""Runs tests inside a container with the fewest privileges: `python -m tests.support.in_container tests/acceptance`.

Its first process helps nobody: it reaps only the tests. The tests' folders are on a volume, as a service's data are.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.support.container import DATA, FEWEST, Privileges, running
from tests.support.service import PROJECT

_MAKE_CONTAINERS = ("test_image.py", "test_container_matrix.py")


def main() -> int:
    """The exit status of pytest there."""
    privileges = Privileges(FEWEST, devices=("fuse",), masked=False, cgroup_writable=True)
    ignored = [f"--ignore={PROJECT}/tests/acceptance/{name}" for name in _MAKE_CONTAINERS]
    options = ["-p", "no:cacheprovider", f"--basetemp={DATA}/tests", f"--rootdir={PROJECT}", *ignored]
    tests = [str(PROJECT / name) if (PROJECT / name).exists() else name for name in sys.argv[1:]]
    argv = [sys.executable, "-m", "pytest", *options, *tests]
    folder = Path(tempfile.mkdtemp(prefix="hf-tests-in-container-"))
    environment = {"HOLDFAST_ALLOW_MISSING_DRIVERS": "1", "PYTHONPATH": str(PROJECT)}
    try:
        with running(folder, privileges, argv, environment=environment, folder_of_work=str(PROJECT)) as container:
            status = container.process.wait()
            sys.stdout.write(container.stdout.read_text())
            sys.stderr.write(container.stderr.read_text())
            return status
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
