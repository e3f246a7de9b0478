"""The image of the Dockerfile: built step by step, and run like `docker run` with few privileges."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.node import mountinfo
from tests.acceptance.http_box import HttpBox
from tests.support import container, image
from tests.support.service import LAST_WORDS, PROJECT, START_S, eventually

HALF_OF_THE_FIRST_BYTES = 650_000_000
NOT_IN_IT = ("moto", "flask", "mypy", "pytest", "hypothesis", "schemathesis", "ruff", "pip")

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[image.Image]:
    """The built image; afterwards its trees are deleted, and the parts of this machine that it used are unchanged."""
    folder = tmp_path_factory.mktemp("image")
    before = states(image.lent_paths())
    try:
        yield image.build(PROJECT, folder)
        assert states(image.lent_paths()) == before
        assert mountinfo.mounts_under(folder) == []
    finally:
        shutil.rmtree(folder)


def test_the_image_is_small_has_no_tests_and_runs_as_its_own_init(built: image.Image, tmp_path: Path) -> None:
    assert built.bytes < HALF_OF_THE_FIRST_BYTES
    packages = {
        path.name.lower() for path in (built.root / "opt/holdfast/.venv/lib/python3.11/site-packages").iterdir()
    }
    assert not packages & set(NOT_IN_IT)
    assert not {"tests", "examples", ".ci", ".git"} & set(os.listdir(built.root / "opt/holdfast"))
    assert not (built.root / "run" / "lent").exists()

    argv = [*built.entrypoint, *built.command]
    environment = {**built.environment, "SANDBOX_API_KEY": container.KEY}
    few = container.Privileges(capabilities=container.FEWEST, devices=("fuse",), masked=False, cgroup_writable=True)
    with container.running(tmp_path, few, argv, environment=environment, tree=built.root, as_init=True) as running:
        eventually(
            lambda: LAST_WORDS in running.stdout.read_text() or running.process.poll() is not None, timeout_s=START_S
        )
        assert running.process.poll() is None, running.stderr.read_text()
        assert b"tini" in Path(f"/proc/{running.first}/cmdline").read_bytes()
        with running.client() as client:
            box = HttpBox(client, "box")
            box.sh("echo kept > file")
            handle = box.backup("/workspace")
            box.sh("rm file")
            box.restore(handle)
            assert box.sh("cat file") == "kept\n"
            for _ in range(20):
                box.sh("true")
        eventually(lambda: not zombies_below(running.first))
        assert running.stop() == 0


def states(paths: list[Path]) -> dict[Path, tuple[int, int, int]]:
    """Returns inode, size and time of last change of each path."""
    return {path: (found.st_ino, found.st_size, found.st_ctime_ns) for path in paths if (found := path.lstat())}


def zombies_below(first: int) -> list[str]:
    """Returns the ended processes of a pid namespace that have not been reaped."""
    namespace = os.readlink(f"/proc/{first}/ns/pid")
    found = subprocess.run(["ps", "-eo", "stat=,pidns=,comm="], check=True, capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if line.startswith("Z") and namespace.strip("pid:[]") in line]
