"""Hand-over of a sandbox from a node that is being drained: everything that it has written goes with it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.errors import BackupCreateError, SandboxUnavailableError
from actors.models import OperationKind
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from storage.config import BucketConfig
from storage.metadata import SandboxState
from storage.s3 import S3ObjectStore
from tests.support.faulty_store import FaultyStore
from tests.support.held_store import AwayStore
from tests.support.mount_leaks import wait_until
from tests.support.s3 import FAST
from tests.support.sandboxes import Node, backup, command, restore, sh, write


@dataclass
class Pair:
    """The drained node, another node, and a sandbox name that no other test uses."""

    drained: Node
    other: Node
    name: str

    def box(self, node: Node, **options: Any) -> LocalSandbox:
        return node.sandbox(self.name, **options)

    @property
    def state(self) -> SandboxState:
        return self.other.state(self.name)


@contextmanager
def pair(scratch: Path, bucket: BucketConfig, driver: Driver) -> Iterator[Pair]:
    with ExitStack() as stack:
        drained, other = (
            stack.enter_context(Node(scratch / name, bucket, driver, identity=name)) for name in ("a", "b")
        )
        yield Pair(drained, other, f"sb-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def nodes(scratch: Path, bucket: BucketConfig, best_driver: Driver) -> Iterator[Pair]:
    with pair(scratch, bucket, best_driver) as nodes:
        yield nodes


@pytest.fixture
def each_driver(scratch: Path, bucket: BucketConfig, driver: Driver) -> Iterator[Pair]:
    """The nodes with each driver in turn."""
    with pair(scratch, bucket, driver) as nodes:
        yield nodes


def test_a_running_command_is_ended_only_after_all_its_writes_are_saved(nodes: Pair) -> None:
    box = nodes.box(nodes.drained)
    script = "i=0; while true; do i=$((i+1)); echo $i >> file; echo $i >> /home/file; echo $i; done"
    with command(box, script) as running:
        box.hand_over()
        error = running.error()
    assert isinstance(error, SandboxUnavailableError) and error.retryable
    assert error.context == {"outcome": "unknown", "reason": "DRAINING"}
    assert not nodes.drained.home(nodes.name).exists()
    assert (nodes.state.node, nodes.state.slept_on) == (None, nodes.drained.layout.identity())

    again = nodes.box(nodes.other)
    here, there = (sh(again, f"cat {path}").split() for path in ("file", "/home/file"))
    assert here[: len(there)] == there and len(here) - len(there) in (0, 1)  # both are of the same moment
    assert nodes.state.recovery is None


def test_a_restored_directory_is_handed_over_with_its_writes(each_driver: Pair) -> None:
    nodes = each_driver
    box = nodes.box(nodes.drained)
    sh(box, "mkdir sub; echo old > sub/file; echo kept > sub/other")
    restore(box, backup(box, "/workspace/sub"))
    sh(box, "echo new > sub/file; echo more > /tmp/file")
    box.hand_over()
    assert sh(nodes.box(nodes.other), "cat sub/file sub/other /tmp/file") == "new\nkept\nmore\n"


def test_a_sandbox_asleep_on_the_node_is_handed_over_by_a_new_actor(nodes: Pair) -> None:
    box = nodes.box(nodes.drained)
    sh(box, "echo kept > file")
    box.sleep()
    nodes.box(nodes.drained, awake=False).hand_over()
    assert not nodes.drained.home(nodes.name).exists()
    assert sh(nodes.box(nodes.other), "cat file") == "kept\n"


def test_a_hand_over_can_be_repeated(nodes: Pair) -> None:
    box = nodes.box(nodes.drained)
    sh(box, "echo kept > file")
    box.hand_over()
    box.hand_over()
    nodes.box(nodes.drained, awake=False).hand_over()
    assert sh(nodes.box(nodes.other), "cat file") == "kept\n"


def test_files_that_are_out_of_date_are_not_handed_over(nodes: Pair) -> None:
    box = nodes.box(nodes.drained)
    sh(box, "echo old > file")
    backup(box)
    box.sleep()
    newer = nodes.box(nodes.other, lost=["a"])
    sh(newer, "echo new > file")
    nodes.box(nodes.drained, awake=False).hand_over()
    assert sh(newer, "cat file") == "new\n"
    backup(newer)
    assert nodes.state.node == nodes.other.layout.identity()


def test_while_the_bucket_is_away_the_sandbox_stays_and_its_commands_go_on(nodes: Pair) -> None:
    store = AwayStore(S3ObjectStore(nodes.drained.bucket, transfer=FAST))
    box = nodes.box(nodes.drained, catalog=nodes.drained.catalog(store))
    sh(box, "echo kept > file")
    backup(box, "/home")
    with command(box, "echo begun; while ! test -e go; do sleep 0.05; done; echo done > ended") as running:
        store.is_away = True
        with pytest.raises(SandboxUnavailableError) as raised:
            box.hand_over()
        assert raised.value.context == {"outcome": "not_executed", "reason": "STORAGE_UNAVAILABLE"}
        assert box.info().recent[-1].kind is OperationKind.BACKUP and box.info().recent[-1].outcome == "ok"
        write(box, "/workspace/go", b"")
        assert running.result().exit_code == 0
        store.is_away = False
    box.hand_over()
    assert sh(nodes.box(nodes.other), "cat file ended") == "kept\ndone\n"


def test_an_archive_that_cannot_be_stored_leaves_the_sandbox_where_it_was(nodes: Pair) -> None:
    store = FaultyStore(S3ObjectStore(nodes.drained.bucket, transfer=FAST))
    box = nodes.box(nodes.drained, catalog=nodes.drained.catalog(store))
    sh(box, "echo kept > file")
    with command(box, "echo begun; while ! test -e go; do sleep 0.05; done; echo done > ended") as running:
        for _ in range(20):
            store.fail("put", "meta.json", after=False)
        with pytest.raises(BackupCreateError):
            box.hand_over()
        write(box, "/workspace/go", b"")
        assert running.result().exit_code == 0
    store.faults.clear()
    box.hand_over()
    assert sh(nodes.box(nodes.other), "cat file ended") == "kept\ndone\n"


def test_a_hand_over_ends_open_transfers_with_an_error(nodes: Pair) -> None:
    box = nodes.box(nodes.drained)
    write(box, "/workspace/large", bytes(4 * 1024 * 1024))
    reading = box.read_file("reading", "/workspace/large")
    next(reading)
    upload = box.open_file("/workspace/half", None)
    box.send(upload, b"half")
    unpacking = box.open_hydrate()
    assert unpacking
    box.hand_over()
    with pytest.raises(SandboxUnavailableError):
        list(reading)
    assert sh(nodes.box(nodes.other), "ls -A") == "large\n"


def test_a_sandbox_that_was_never_used_leaves_nothing_in_the_bucket(nodes: Pair) -> None:
    nodes.box(nodes.drained, awake=False).hand_over()
    assert nodes.drained.catalog().sandboxes.find_state("default", nodes.name) is None


def test_calls_during_a_hand_over_wait_and_see_no_half_removed_tree(nodes: Pair) -> None:
    box = nodes.box(nodes.drained)
    sh(box, "head -c 20000000 /dev/urandom > file")
    moving = threading.Thread(target=box.hand_over)
    moving.start()
    assert wait_until(lambda: box.operation() is not None or not moving.is_alive())
    found: str | None = None
    try:
        found = sh(box, "ls")
    except SandboxUnavailableError as e:
        assert e.context["outcome"] == "not_executed"
    moving.join()
    assert found in (None, "file\n")


def test_a_sandbox_can_wake_on_the_node_that_handed_it_over(nodes: Pair) -> None:
    box = nodes.box(nodes.drained)
    sh(box, "echo kept > file")
    box.hand_over()
    assert sh(nodes.box(nodes.drained), "cat file") == "kept\n"


def test_an_unchanged_sandbox_is_handed_over_with_its_existing_backups(nodes: Pair) -> None:
    box = nodes.box(nodes.drained)
    sh(box, "echo kept > file")
    box.hand_over()
    before = nodes.state.checkpoints
    nodes.box(nodes.other).hand_over()
    assert nodes.state.checkpoints == before
