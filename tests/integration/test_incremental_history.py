"""Random histories of a directory on nodes with different drivers: each backup restores to what it was, on every node.

Most backups are incremental. Between them the directory is changed, restored as an overlay or as a copy, and the
sandbox sleeps, wakes on another node, and loses its node. `make soak` runs more histories.
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, Phase, event, example, given, note, settings
from hypothesis import strategies as st

from actors.config import BackupLimits
from actors.models import DirectoryBackup, RestoreMode, RestoreOptions
from actors.node import mounting
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from storage.config import BucketConfig
from tests.support.layered import gc
from tests.support.mount_leaks import nothing_leaks
from tests.support.sandboxes import Node, backup, sh
from tests.support.tree_operations import Change, Kind, apply, changes, populate
from tests.support.trees import Entry, fingerprint

EXAMPLES = int(os.environ.get("HOLDFAST_TEST_INCREMENTAL_HISTORIES") or 4)
TREE = "/workspace/tree"
KINDS: tuple[Kind, ...] = (
    "write", "append", "truncate", "replace", "rename", "rename", "unlink", "rmtree", "rmdir", "mkdir", "mkdir",
    "symlink", "chmod", "touch", "setxattr", "removexattr", "fifo",
)  # fmt: skip
"""Without hard links, which the drivers over squashfuse do not keep."""
DRIVERS = [
    (Driver.KERNEL, Driver.ROOTLESS, Driver.MIXED),
    (Driver.MIXED, Driver.KERNEL, Driver.FUSE),
    (Driver.ROOTLESS, Driver.MIXED, Driver.KERNEL),
]
"""Of the two nodes on which the sandbox lives, and of a third on which each of its backups is restored.

No sandbox lives on `fuse`, which would not show all changes after a sleep; it restores incremental backups as copies.
"""
Content = dict[bytes, Entry]
Name = Literal["backup", "full", "chain", "wake", "crash", "sleep", "lose", "collect"]
Step = tuple[Literal["restore", "copy"], int] | Name
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.sampled_from(["backup", "backup", "chain", "chain", "full", "wake", "crash", "sleep", "lose", "collect"]),
    st.tuples(st.sampled_from(["restore", "restore", "copy"]), st.integers(0, 5)),
)


class History:
    """A directory of one sandbox, and what each of its backups has to hold."""

    def __init__(self, nodes: tuple[Node, Node, Node]) -> None:
        self.at, self.other, third = nodes
        self.name = f"sb-{uuid.uuid4().hex[:12]}"
        self.actors: dict[str, LocalSandbox] = {}
        self.made: list[tuple[DirectoryBackup, Content]] = []
        self.box = self._wake()
        self.elsewhere = third.sandbox(f"elsewhere-{self.name}")
        self.third = third
        self.place.mkdir()
        populate(self.place)
        (self.place / "data").write_bytes(os.urandom(300_000))
        self.now = self.safe = self.content()
        self.back_up()

    def _wake(self, *, lost: Node | None = None) -> LocalSandbox:
        before = self.actors.get(self.at.identity)
        if before is not None and before.is_awake:
            before.close()
        box = self.actors[self.at.identity] = self.at.sandbox(self.name, lost=[lost.identity] if lost else [])
        box.ownership.check()
        return box

    @property
    def place(self) -> Path:
        return self.at.tree(self.box) / TREE.lstrip("/")

    def content(self) -> Content:
        return _described(self.place)

    def change(self, change: Change) -> None:
        sh(self.box, "true")  # only a call can change a sandbox, so one that had none since it woke makes no new backup
        apply(change, self.place)
        self.now = self.content()

    def back_up(self, *, full: bool = False) -> None:
        made = backup(self.box, TREE, full=full)
        self.made.append((made, self.now))
        self.safe = self.now
        self.check_elsewhere(made, self.now)

    def check_elsewhere(self, made: DirectoryBackup, expected: Content) -> None:
        record = self.third.catalog().get("default", made.id)
        event(f"made on {self.at.driver}, of {record.depth} archives")
        for mode in (None, RestoreMode.COPY):
            if mode is None and self.third.driver is Driver.FUSE and not record.is_incremental:
                continue  # the names are too long for it
            _restore(self.elsewhere, made, mode)
            found = _described(self.third.tree(self.elsewhere) / TREE.lstrip("/"))
            assert found == expected, (mode, record.depth)

    def restore(self, number: int, mode: RestoreMode | None) -> None:
        made, expected = self.made[number % len(self.made)]
        _restore(self.box, made, mode)
        self.now = self.safe = expected

    def act(self, step: Step) -> None:
        match step:
            case "backup" | "full":
                self.back_up(full=step == "full")
            case "chain":  # the next backup is laid on this one
                self.back_up()
                self.restore(-1, None)
            case "wake":
                self.box.close()
                self.box.wake()
            case "crash":
                self.box = self._wake()
            case "sleep":
                self.box.sleep(self.box.back_up_for_sleep())
                self.safe = self.now
                self.at, self.other = self.other, self.at
                self.box = self._wake()
            case "lose":
                lost, self.at, self.other = self.at, self.other, self.at
                self.now = self.safe
                self.box = self._wake(lost=lost)
            case "collect":
                gc(self.at)
            case ("restore", number):
                self.restore(number, None)
            case ("copy", number):
                # Inside a directory that was restored, as /workspace is after a sleep, no copy can be made.
                is_inside = any(entry.dir == "/workspace" for entry in self.box.info().restored)
                self.restore(number, None if is_inside else RestoreMode.COPY)
        assert self.content() == self.now

    def end(self) -> None:
        """At last, every backup restores to what it was, also after the deletion of some and a collection."""
        for made, _ in self.made[1::2]:
            self.at.catalog().delete("default", made.id)
        gc(self.at)
        for made, expected in self.made[::2]:
            self.check_elsewhere(made, expected)

    def close(self) -> None:
        for actor in self.actors.values():
            if actor.is_awake and actor is not self.box:
                actor.close()
        for box in (self.box, self.elsewhere):
            box.destroy()
        for made, _ in self.made:
            self.at.catalog().delete("default", made.id)


def _described(root: Path) -> Content:
    """The tree without owners, as the test makes changes as another user than the sandbox's."""
    return {name: dataclasses.replace(entry, uid=0, gid=0) for name, entry in fingerprint(root).items()}


def _restore(box: LocalSandbox, made: DirectoryBackup, mode: RestoreMode | None) -> None:
    options = RestoreOptions(id=made.id, dir=TREE) if mode is None else RestoreOptions(id=made.id, dir=TREE, mode=mode)
    box.restore_backup(options)


@pytest.fixture(scope="module", params=DRIVERS, ids="-".join)
def nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bucket: BucketConfig
) -> Iterator[tuple[Node, Node, Node]]:
    folder = tmp_path_factory.mktemp("history")
    with nothing_leaks(folder):
        with ExitStack() as stack:
            a, b, c = (
                stack.enter_context(Node(folder / name, bucket, driver, identity=name))
                for name, driver in zip("abc", request.param, strict=True)
            )
            for node in (a, b, c):
                node.adjust(backup=BackupLimits(incremental_min_bytes=0))
            yield a.alone_in_the_bucket(), b, c
        mounting.sweep(folder)


@pytest.mark.timeout(300 + 30 * EXAMPLES)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(["sleep", Change("setxattr", "a", "b", 1), "sleep"])
@given(steps=st.lists(st.one_of(changes(*KINDS), changes(*KINDS), STEPS), min_size=6, max_size=24))
def test_each_backup_restores_to_what_it_was_on_every_driver(
    nodes: tuple[Node, Node, Node], steps: list[Change | Step]
) -> None:
    history = History(nodes)
    try:
        for step in (*steps, "backup"):
            note(f"{step} on {history.at.driver}")
            if isinstance(step, Change):
                history.change(step)
            else:
                history.act(step)
        history.end()
    finally:
        history.close()
