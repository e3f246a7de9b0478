"""A real tree of some thousand files, plus what backup tools get wrong: byte for byte the same after a restore."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import botocore
import pytest
import ray

from tests.acceptance.http_box import HttpBox
from tests.acceptance.test_meaning import tree_of
from tests.support import trees
from tests.support.service import Service

PACKAGES = Path(botocore.__file__).parents[1]
ODD = Path(__file__).parents[1] / "support" / "programs" / "odd_tree.py"
LONGEST_NAME_BYTES = 251
"""Longest name that every mount driver supports; fuse-overlayfs crashes on longer ones, so it refuses such trees."""


def tar_of(*names: str) -> Iterator[bytes]:
    """A tar archive of installed packages."""
    process = subprocess.Popen(["tar", "--create", "--file=-", "-C", PACKAGES, *names], stdout=subprocess.PIPE)
    assert process.stdout is not None
    while piece := process.stdout.read(2**20):
        yield piece
    process.stdout.close()
    assert process.wait(120) == 0


@pytest.fixture(scope="module")
def origin(service: Service, client: object) -> Iterator[HttpBox]:
    with service.client() as own, HttpBox(own, "real-tree").destroyed_at_the_end() as box:
        sources = [Path(ray.__file__).parent / name for name in ("data", "serve", "util", "train", "rllib", "_private")]
        names = [str(path.relative_to(PACKAGES)) for path in sources if path.is_dir()]
        response = own.post(f"{box.url}/hydrate", content=tar_of("botocore", *names))
        assert response.json() == {"ok": True}
        box.write("/tmp/trees.py", Path(trees.__file__).read_bytes())
        box.write("/tmp/odd_tree.py", ODD.read_bytes())
        assert box.exec("python3", "/tmp/odd_tree.py", str(LONGEST_NAME_BYTES)).exit_code == 0
        yield box


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_a_real_tree_comes_back_byte_for_byte(service: Service, origin: HttpBox, mode: str) -> None:
    before = tree_of(service, origin)
    assert len(before) > 5000
    assert b"odd/large" in before and before[b"odd/empty"].mode == 0
    assert any(row.xattrs for row in before.values()) and any(len(row.links) > 1 for row in before.values())

    handle = origin.backup()
    origin.restore(handle, dir=f"/app/{mode}", mode=mode)

    after = tree_of(service, origin, f"/app/{mode}")
    assert after.keys() == before.keys()
    assert {name: (before[name], row) for name, row in after.items() if row != before[name]} == {}
    assert tree_of(service, origin) == before


def test_a_restored_real_tree_that_was_changed_and_backed_up_again_comes_back_too(
    service: Service, origin: HttpBox
) -> None:
    origin.restore(origin.backup(), dir="/app/changed")
    origin.sh(
        "cd /app/changed; mv botocore moved; rm -r moved/data/ec2; echo more >> moved/session.py; chmod 700 odd/zeros"
    )
    before = tree_of(service, origin, "/app/changed")

    handle = origin.backup("/app/changed")
    origin.restore(handle, dir="/home/again", mode="overlay")
    origin.restore(handle, dir="/home/copied", mode="copy")

    assert differences(before, tree_of(service, origin, "/home/again")) == {}
    assert differences(before, tree_of(service, origin, "/home/copied")) == {}


def differences(before: dict[bytes, trees.Entry], after: dict[bytes, trees.Entry]) -> dict[bytes, object]:
    return {name: (before.get(name), after.get(name)) for name in before.keys() | after.keys()
            if before.get(name) != after.get(name)}  # fmt: skip
