"""A restored directory behaves like a plain one under random changes.

The plain directory is the reference. Between the changes the sandbox sleeps and wakes, so that the overlay is unmounted
and mounted again, and the directory is backed up and restored.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from actors.node import driver_choice, mounting
from actors.node.drivers import Driver, Limit
from actors.node.layers import Layers
from storage.config import BucketConfig
from tests.integration.test_layers import pack
from tests.support.mount_leaks import nothing_leaks
from tests.support.sandboxes import Node, backup, restore
from tests.support.tree_operations import TEMPORARY, Change, Kind, apply, changes, described, populate

Between = Literal["wake", "backup"]
BETWEEN: tuple[Between, ...] = ("wake", "backup")
KINDS: tuple[Kind, ...] = (
    "write", "append", "truncate", "replace", "replace", "rename", "rename", "unlink", "unlink", "rmtree", "rmdir",
    "mkdir", "mkdir", "symlink", "chmod", "setxattr", "removexattr",
)  # fmt: skip
UNLESS_LIMITED: dict[Limit, Kind] = {Limit.LINKS: "link", Limit.FIFOS: "fifo"}
"""Changes that are left out for a driver with that limit, since later results may differ."""
_numbers = itertools.count()


def allowed(driver: Driver) -> tuple[Kind, ...]:
    return (*KINDS, *(kind for limit, kind in UNLESS_LIMITED.items() if limit not in driver.limits))


@pytest.fixture(scope="module", params=list(Driver))
def offered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bucket: BucketConfig
) -> Iterator[Node]:
    """A node for each driver that is offered here."""
    driver = Driver(request.param)
    reason = driver_choice.verdict(driver, tmp_path_factory.getbasetemp().resolve() / "verdicts").reason
    if reason is not None:
        pytest.skip(f"{driver} is not offered: {reason}")
    folder = tmp_path_factory.mktemp("overlay")
    with nothing_leaks(folder):
        with Node(folder / "data", bucket, driver) as made:
            yield made
        mounting.sweep(folder)


PHANTOM = b".opq"
"""A name that fuse-overlayfs lists in a directory that was deleted and made again, but then does not find."""

REPLACED_AND_DELETED = [Change("replace", "c", "c", 1), Change("unlink", "c", "c", 1)]
DIRECTORY_MADE_ANEW = [Change("rmtree", "a", "a", 1), "wake", Change("mkdir", "a", "a", 1), "backup"]
RENAMED_OVER = [
    Change("mkdir", "c/c", "a", 1),
    Change("rmtree", "a/c", "a", 1),
    Change("rename", "b", "a/c", 1),
    "wake",
]


@pytest.mark.timeout(600)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_restored_directory_behaves_like_a_plain_one(offered: Node, data: st.DataObject) -> None:
    steps: st.SearchStrategy[list[Change | Between]] = st.lists(
        changes(*allowed(offered.driver)) | st.sampled_from(BETWEEN), min_size=4, max_size=40
    )
    check(offered, data.draw(steps))


@pytest.mark.parametrize(
    "steps", [REPLACED_AND_DELETED, DIRECTORY_MADE_ANEW, RENAMED_OVER], ids=["replaced", "anew", "renamed"]
)
def test_deleted_and_recreated_files_do_not_reappear(offered: Node, steps: list[Change | Between]) -> None:
    check(offered, steps)


def check(node: Node, steps: list[Change | Between]) -> None:
    """Makes the same changes to a restored directory and to a plain one, and compares them after each step."""
    box = node.sandbox(f"overlay-{next(_numbers)}")
    plain = node.data_dir.parent / f"plain-{box.id}"
    made = node.tree(box) / "workspace" / "tree"
    try:
        for root in (plain, made):
            root.mkdir()
            populate(root)
        restore(box, backup(box, "/workspace/tree"), "/workspace/tree")
        for step in steps:
            if step == "wake":
                box.close()
                box.wake()
            elif step == "backup":
                restore(box, backup(box, "/workspace/tree"), "/workspace/tree")
            else:
                assert isinstance(step, Change)
                assert apply(step, made) == apply(step, plain), step
            assert described(made) == described(plain), step
    finally:
        box.destroy()
        shutil.rmtree(plain)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("driver", [Driver.KERNEL, Driver.MIXED, Driver.ROOTLESS], indirect=True)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=st.lists(changes(*KINDS), min_size=4, max_size=40))
@example(steps=[Change("rmtree", "a", "a", 1), Change("mkdir", "a", "a", 1), Change("unlink", "c", "c", 1)])
@example(steps=[Change("rename", "b", "a/c", 1), Change("unlink", "c", "c", 1), Change("mkdir", "c", "c", 1)])
def test_a_layer_of_fuse_overlayfs_has_the_same_content_after_its_conversion(
    driver: Driver, scratch: Path, steps: list[Change]
) -> None:
    folder = scratch / f"example-{next(_numbers)}"
    (folder / "tree").mkdir(parents=True)
    populate(folder / "tree")
    for path in sorted((folder / "tree").rglob("x*"), reverse=True):  # longer names than fuse-overlayfs supports
        path.rename(path.with_name("y"))
    archive = pack(folder / "tree", folder / "archive.sqsh")
    before = Layers(folder / "layers", folder / "lowers", driver=Driver.FUSE, on_lost=lambda layer: None)
    layer = before.create(*archive)
    for step in steps:
        if "x" not in step.path + step.other:
            with contextlib.suppress(FileExistsError):
                apply(step, layer.merged)
    before.close(layer)
    before.open(layer.id, *archive)  # its view as stored in its upper, without its caches
    expected = described(layer.merged, ignored=PHANTOM)
    before.close(layer)
    after = Layers(folder / "layers", folder / "lowers", driver=driver, on_lost=lambda layer: None)
    assert described(after.open(layer.id, *archive).merged) == expected
    after.close(layer)
    assert described(after.open(layer.id, *archive).merged) == expected
    assert TEMPORARY.encode() not in expected
    after.discard(layer)
    shutil.rmtree(folder)
