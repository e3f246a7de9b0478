"""A damaged state document in the bucket: the sandbox recovers without loss, or callers get a typed error."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from actors.errors import (
    BackupCreateError,
    DocumentDamagedError,
    HoldfastError,
    SandboxNotFoundError,
    StorageUnavailableError,
)
from actors.models import DirectoryBackup
from actors.sandbox.facade import LocalSandbox
from actors.service.facade import Service
from actors.state.document import STATE_REPLACED
from storage import keys
from storage.metadata import SandboxState
from tests.support.held_store import AwayStore
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import Node, backup, code_of, restore, sh

Damage = Callable[[bytes], bytes]


def changed(**fields: Any) -> Damage:
    return lambda data: json.dumps({**json.loads(data), **fields}).encode()


DAMAGES: dict[str, Damage] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "not JSON": lambda data: b"\x00\xff" * 50,
    "an array": lambda data: b"[]",
    "null": lambda data: b"null",
    "no fields": lambda data: b"{}",
    "wrong types": changed(epoch="7", checkpoints={}),
    "NaN": changed(epoch=float("nan")),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "another sandbox's": changed(id="another"),
    "another tenant's": changed(tenant="another"),
    "17 MB": changed(padding="x" * 17 * 2**20),
    "deep": lambda data: b"[" * 100_000,
}
NEWER = b'{"version":2,"id":"of a later release"}'


class Used:
    """A used sandbox: with a restored directory, a later backup, and a change after it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.name = f"sb-{uuid.uuid4().hex[:12]}"
        self.box = node.sandbox(self.name)
        sh(self.box, "mkdir a b; echo 1 > a/file; echo 2 > b/file")
        self.restored = backup(self.box, "/workspace/a")
        restore(self.box, self.restored)
        self.made = backup(self.box, "/workspace/b")
        sh(self.box, "echo 3 > a/file; echo 4 > new")
        assert wait_until(lambda: self.state.unsaved == ["/workspace"]), "a note of it is on its way to the bucket"

    @property
    def key(self) -> str:
        return keys.state("default", self.name)

    @property
    def state(self) -> SandboxState:
        return self.node.state(self.name)

    @property
    def service(self) -> Service:
        return Service(self.node.config, self.node.catalog(), awake=lambda tenant, sandboxes: ())

    def damage(self, how: Damage) -> bytes:
        store = self.node.catalog().store
        data = how(store.get(self.key).data)
        store.put(self.key, data)
        return data

    def stored(self, key: str) -> bytes:
        return self.node.catalog().store.get(key, max_bytes=2**26).data

    def woken_anew(self) -> LocalSandbox:
        self.box.close()
        self.box = self.node.sandbox(self.name, awake=False)
        return self.box

    def kept_aside(self) -> list[bytes]:
        return [self.stored(key) for key in sorted(self.node.keys()) if key[:8] == "damaged/" and self.key in key]


@pytest.fixture
def used(kernel_node: Node) -> Used:
    return Used(kernel_node)


@pytest.mark.parametrize(
    ("damage", "asleep"),
    [*((damage, True) for damage in DAMAGES), *((damage, False) for damage in ("empty", "another sandbox's", "17 MB"))],
)
def test_a_call_works_and_a_backup_replaces_the_damaged_state(used: Used, damage: str, asleep: bool) -> None:
    before = used.state
    box = used.woken_anew() if asleep else used.box
    damaged = used.damage(DAMAGES[damage])
    assert sh(box, "cat a/file b/file new") == "3\n2\n4\n"
    latest = backup(box, "/workspace")
    state = used.state
    assert (state.node, state.created_at) == (before.node, before.created_at)
    assert [(row.dir, row.backup_id) for row in state.restored] == [("/workspace/a", used.restored.id)]
    assert [(row.dir, row.backup_id) for row in state.checkpoints] == [("/workspace", latest.id)]
    assert state.epoch > before.epoch if asleep else state.epoch == before.epoch
    assert STATE_REPLACED in [event.kind for event in state.events]
    assert used.kept_aside() == [damaged]


def test_the_checkpoints_of_directories_are_found_again(used: Used) -> None:
    box = used.woken_anew()
    used.damage(DAMAGES["empty"])
    sh(box, "true")

    def is_sound() -> bool:
        try:
            return used.service.describe("default", used.name).epoch > 0
        except DocumentDamagedError:
            return False

    assert wait_until(is_sound)
    wanted = {"/workspace/a": used.restored.id, "/workspace/b": used.made.id}
    assert {row.dir: row.backup_id for row in used.state.checkpoints} == wanted


@pytest.mark.parametrize("damage", DAMAGES)
def test_reads_report_the_damage_and_deletion_works_at_once(used: Used, damage: str) -> None:
    asleep = {row.backup_id for row in used.box.back_up_for_sleep()}
    box = used.woken_anew()
    used.damage(DAMAGES[damage])
    service = used.service
    acts: list[Callable[[], object]] = [
        lambda: service.describe("default", used.name),
        lambda: service.events("default", used.name, 10),
        lambda: service.set_labels("default", used.name, {"a": "1"}),
        lambda: service.change_labels("default", used.name, {"a": "1"}, []),
    ]
    for act in acts:
        with pytest.raises(DocumentDamagedError) as raised:
            act()
        context = {"reason": "CORRUPT_METADATA", "document": used.key, "outcome": "not_executed"}
        assert raised.value.context == context
        assert "delete the sandbox" in str(raised.value.hint)
    assert used.key in service.collect(dry_run=True).unreadable
    assert used.name in {row.id for row in service.sandboxes("default", 1000, None).sandboxes}

    box.destroy()

    assert not used.node.home(used.name).exists()
    with pytest.raises(SandboxNotFoundError):
        service.describe("default", used.name)
    kept = {row.id for row in used.node.catalog().page("default", used.name).records}
    assert kept == {used.restored.id, used.made.id} | asleep
    heir = used.node.sandbox(used.name)
    assert sh(heir, "ls -A") == ""
    restore(heir, used.made)
    assert sh(heir, "cat b/file") == "2\n"


def test_a_sandbox_asleep_in_the_bucket_with_a_damaged_state_can_be_deleted_and_restored(used: Used) -> None:
    checkpoints = used.box.back_up_for_sleep()
    used.box.sleep(checkpoints)
    used.damage(DAMAGES["half"])
    box = used.node.sandbox(used.name, awake=False)
    with pytest.raises(DocumentDamagedError):
        sh(box, "true")
    box.destroy()
    heir = used.node.sandbox(used.name)
    for row in checkpoints:
        restore(heir, DirectoryBackup(id=row.backup_id, dir=row.dir))
    assert sh(heir, "cat a/file b/file new") == "3\n2\n4\n"
    used.service.delete_backup("default", checkpoints[0].backup_id)


@pytest.mark.parametrize("damage", ["empty", "another tenant's"])
def test_a_node_without_the_files_refuses_and_can_delete(used: Used, kernel_node: Node, damage: str) -> None:
    used.box.close()
    used.damage(DAMAGES[damage])
    with Node(kernel_node.data_dir.parent / "elsewhere", kernel_node.bucket, kernel_node.driver, identity="b") as other:
        there = other.sandbox(used.name, awake=False)
        before = used.stored(used.key)
        for act in (lambda: sh(there, "true"), lambda: backup(there), lambda: restore(there, used.made)):
            with pytest.raises(DocumentDamagedError) as raised:
                act()
            assert raised.value.context["document"] == used.key
            assert "delete the sandbox" in str(raised.value.hint)
        assert used.stored(used.key) == before
        there.destroy()
        assert sh(there, "ls -A") == ""


@pytest.mark.parametrize("asleep", [False, True], ids=["awake", "asleep"])
def test_a_state_of_a_later_release_is_neither_replaced_nor_deleted(used: Used, asleep: bool) -> None:
    box = used.woken_anew() if asleep else used.box
    used.damage(lambda data: NEWER)
    service = used.service
    acts: list[Callable[[], object]] = [
        lambda: backup(box),
        box.destroy,
        lambda: service.describe("default", used.name),
        lambda: service.set_labels("default", used.name, {"a": "1"}),
    ]
    if asleep:
        acts.append(lambda: sh(box, "true"))
    for act in acts:
        with pytest.raises(HoldfastError) as raised:
            act()
        assert code_of(raised.value) in ("DOCUMENT_DAMAGED", BackupCreateError.code)
        assert raised.value.context["reason"] == "NEWER_DOCUMENT"
    assert used.stored(used.key) == NEWER
    assert (used.node.tree(box) / "workspace" / "new").read_text() == "4\n"


def test_a_deletion_removes_nothing_while_the_bucket_does_not_answer(kernel_node: Node) -> None:
    away = AwayStore(kernel_node.catalog().store)
    box = kernel_node.sandbox("kept", catalog=kernel_node.catalog(away))
    sh(box, "echo 1 > file")
    backup(box)
    away.is_away = True
    for _ in range(2):
        with pytest.raises(StorageUnavailableError) as raised:
            box.destroy()
        assert raised.value.context == {"outcome": "not_executed"}
        assert sh(box, "cat file") == "1\n"
    away.is_away = False
    box.destroy()
    assert not kernel_node.home("kept").exists()
