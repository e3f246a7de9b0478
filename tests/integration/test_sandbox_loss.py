"""Loss of unsaved data: after a node's death callers get a notice of the lost roots, until one has arrived for sure."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.models import WRITABLE_ROOTS, ExecRequest
from actors.node import driver_choice
from actors.sandbox.facade import LocalSandbox
from storage import keys
from storage.config import BucketConfig
from storage.s3 import S3ObjectStore
from tests.support.held_store import AwayStore
from tests.support.mount_leaks import wait_until
from tests.support.node_pair import Pair
from tests.support.s3 import FAST
from tests.support.sandboxes import Node, backup, command, restore, run, sh, write


@dataclass
class Nodes(Pair):
    """Three nodes with one bucket; the sandbox is on the first node until that is lost."""

    c: Node

    def noted(self, *roots: str) -> bool:
        """Waits for the bucket's state to name exactly these roots as unsaved; true if it does."""

        def as_expected() -> bool:
            found = self.a.catalog().sandboxes.find_state("default", self.name)
            return found is not None and found.state.unsaved == list(roots)

        return wait_until(as_expected)


@pytest.fixture
def nodes(scratch: Path, bucket: BucketConfig) -> Iterator[Nodes]:
    driver = driver_choice.choose("auto", scratch / "probe")
    with ExitStack() as stack:
        a, b, c = (stack.enter_context(Node(scratch / name, bucket, driver, identity=name)) for name in "abc")
        yield Nodes(a, b, f"sb-{uuid.uuid4().hex[:12]}", False, c)


def lost(box: LocalSandbox) -> list[str]:
    recovery = box.info().recovery
    assert recovery is not None
    return recovery.lost


def test_roots_that_were_never_backed_up_are_named_as_lost(nodes: Nodes) -> None:
    box = nodes.on_a()
    sh(box, "echo kept > file; mkdir /tmp/sub; echo lost > /tmp/sub/file; echo lost > ~/file")
    kept = backup(box)
    assert nodes.noted("/home", "/tmp")
    again = nodes.on_b()
    assert lost(again) == ["/home", "/tmp"]
    assert again.notice() is not None
    assert sh(again, "cat file; ls -A ~ /tmp") == "kept\n/home/sandbox:\n\n/tmp:\n"
    events = [(event.kind, event.dir, event.node) for event in nodes.state.events if event.kind == "lost"]
    assert events == [("lost", root, nodes.a.layout.identity()) for root in ("/home", "/tmp")]
    recovery = again.info().recovery
    assert recovery is not None and [(row.dir, row.backup_id) for row in recovery.directories] == [
        ("/workspace", kept.id)
    ]


def test_a_sandbox_without_any_backup_has_lost_its_used_roots(nodes: Nodes) -> None:
    box = nodes.on_a()
    write(box, "/workspace/file", "lost")
    assert nodes.noted("/workspace")
    box.sleep()
    again = nodes.on_b()
    assert lost(again) == ["/workspace"]
    notice = again.notice()
    assert notice is not None and notice.lacks_anything and not notice.told


@pytest.mark.parametrize("script", ["true", "ls -AlR . ~ /tmp", "echo x > file; rm file", "mkdir -p ~"])
def test_a_sandbox_that_holds_nothing_has_lost_nothing(nodes: Nodes, script: str) -> None:
    box = nodes.on_a()
    sh(box, script)
    assert nodes.noted()
    again = nodes.on_b()
    assert lost(again) == [] and again.notice() is None


def test_a_root_with_an_outdated_backup_is_reported_as_recovered_and_not_as_lost(nodes: Nodes) -> None:
    box = nodes.on_a()
    sh(box, "echo kept > file")
    backup(box)
    sh(box, "echo later > file")
    assert nodes.noted()
    again = nodes.on_b()
    notice = again.notice()
    assert notice is not None and not notice.lacks_anything
    assert [row.dir for row in notice.directories] == ["/workspace"]


@pytest.mark.parametrize(
    ("script", "saved", "expected"),
    [
        ("mkdir -p a/b; echo x > a/b/file", "/workspace/a/b", []),
        ("mkdir -p a/b; echo x > a/b/file; echo y > a/file", "/workspace/a/b", ["/workspace"]),
        ("mkdir -p a/b; echo x > a/b/file; echo y > file", "/workspace/a/b", ["/workspace"]),
        ("mkdir -p a/b c; echo x > a/b/file", "/workspace/a/b", ["/workspace"]),
        ("mkdir ~/a; echo x > ~/a/file", "/home/sandbox/a", []),
        ("mkdir ~/a; echo x > ~/a/file; echo y > /home/file", "/home/sandbox/a", ["/home"]),
        ("echo x > ~/file", "/home/sandbox", []),
        ("echo x > /app/file", "/app", []),
    ],
)
def test_a_root_with_files_outside_its_backups_is_named_as_lost(
    nodes: Nodes, script: str, saved: str, expected: list[str]
) -> None:
    box = nodes.on_a()
    sh(box, script)
    backup(box, saved)
    assert nodes.noted(*expected)
    assert lost(nodes.on_b()) == expected


def test_restored_content_counts_as_backed_up_in_any_directory(nodes: Nodes) -> None:
    box = nodes.on_a()
    sh(box, "mkdir data; echo x > data/file")
    restore(box, backup(box, "/workspace/data"), "/app/fork")
    sh(box, "echo y > /tmp/file")
    assert nodes.noted("/tmp")
    assert lost(nodes.on_b()) == ["/tmp"]


@pytest.mark.parametrize("root", WRITABLE_ROOTS)
def test_each_writable_root_can_be_named_as_lost(nodes: Nodes, root: str) -> None:
    write(nodes.on_a(), f"{root}/file", "lost")
    assert nodes.noted(root)
    assert lost(nodes.on_b()) == [root]


def test_a_running_commands_writes_are_noted_as_unsaved(nodes: Nodes) -> None:
    box = nodes.on_a()
    with command(box, "echo x > file; echo begun; sleep 60"):
        assert nodes.noted("/workspace")
        assert lost(nodes.on_b()) == ["/workspace"]


def test_the_loss_of_a_nodes_files_alone_is_reported_too(nodes: Nodes) -> None:
    box = nodes.on_a()
    write(box, "/workspace/file", "lost")
    assert nodes.noted("/workspace")
    box.sleep()
    shutil.rmtree(nodes.a.home(nodes.name))
    assert lost(nodes.on_a()) == ["/workspace"]


def test_a_state_of_an_earlier_release_names_every_root_without_a_backup(nodes: Nodes) -> None:
    box = nodes.on_a()
    sh(box, "echo kept > file")
    backup(box)
    box.sleep()
    old = nodes.state.model_copy(update={"unsaved": None})
    S3ObjectStore(nodes.a.bucket, transfer=FAST).put(keys.state("default", nodes.name), old.to_json())
    assert lost(nodes.on_b()) == [root for root in WRITABLE_ROOTS if root != "/workspace"]


def test_the_notice_of_a_loss_is_repeated_until_its_delivery_is_confirmed(nodes: Nodes) -> None:
    box = nodes.on_a()
    write(box, "/workspace/file", "lost")
    assert nodes.noted("/workspace")
    again = nodes.on_b()
    notice = again.notice()
    assert notice is not None and again.may_have_news
    again.sleep()
    woken = nodes.b.sandbox(nodes.name)
    assert woken.notice() == notice
    woken.ownership.acknowledge(notice.at)
    assert woken.notice() is None and not woken.may_have_news
    assert (told := woken.info().recovery) is not None and told.told and told.lost == ["/workspace"]
    woken.sleep()
    last = nodes.b.sandbox(nodes.name)
    assert last.notice() is None
    sh(last, "echo new > file")
    assert wait_until(lambda: nodes.state.unsaved == ["/workspace"])
    assert (kept := nodes.state.recovery) is not None and kept.told_at is not None
    assert [event.kind for event in nodes.state.events].count("lost") == 1


def test_a_loss_without_a_confirmed_notice_is_reported_with_the_next_loss(nodes: Nodes) -> None:
    write(nodes.on_a(), "/tmp/file", "lost")
    assert nodes.noted("/tmp")
    write(nodes.on_b(), "/app/file", "lost as well")
    assert nodes.noted("/app")
    third = nodes.c.sandbox(nodes.name, lost=["a", "b"])
    assert lost(third) == ["/app", "/tmp"]


def test_a_recovery_that_restarts_on_another_node_still_names_the_losses(nodes: Nodes) -> None:
    write(nodes.on_a(), "/tmp/file", "lost")
    assert nodes.noted("/tmp")
    taken = nodes.on_b(awake=False)
    taken.ownership.locate(has_record=False)
    taken.ownership.acquire_epoch()  # the actor dies before it does anything else
    assert lost(nodes.c.sandbox(nodes.name, lost=["a", "b"])) == ["/tmp"]


def test_a_sandbox_that_was_handed_over_has_lost_nothing(nodes: Nodes) -> None:
    box = nodes.on_a()
    sh(box, "echo x > file; echo y > /tmp/file")
    assert nodes.noted("/workspace", "/tmp")
    box.hand_over()
    assert nodes.state.unsaved == []
    again = nodes.on_b()
    assert again.info().recovery is None and again.notice() is None


def test_unsaved_roots_are_noted_later_if_the_bucket_is_away_and_commands_do_not_wait(nodes: Nodes) -> None:
    store = AwayStore(S3ObjectStore(nodes.a.bucket, transfer=FAST))
    box = nodes.on_a(catalog=nodes.a.catalog(store))
    sh(box, "true")
    assert nodes.noted()
    store.is_away = True
    assert run(box, "sh", "-c", "echo x > file").exit_code == 0
    store.is_away = False
    assert nodes.noted("/workspace")


def test_an_abandoned_commands_writes_are_noted_as_unsaved(nodes: Nodes) -> None:
    box = nodes.on_a()
    events = box.exec("left", ExecRequest(argv=["sh", "-c", "echo x > file; echo begun; sleep 60"]))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert nodes.noted("/workspace")
