"""A create that is repeated with the same key."""

from __future__ import annotations

import uuid

import pytest

from actors.errors import BackupCreateError, InvalidBackupConfigError
from actors.models import BackupOptions, DirectoryBackup
from actors.sandbox import LocalSandbox
from tests.support.sandboxes import Node, backup, restore, sh, write


@pytest.fixture
def key() -> str:
    """A fresh one: the bucket outlives the test."""
    return uuid.uuid4().hex


def keyed(box: LocalSandbox, key: str, directory: str = "/workspace") -> DirectoryBackup:
    return box.create_backup(BackupOptions(dir=directory), idempotency_key=key)


def test_a_repeated_create_gives_the_first_ones_backup(node: Node, key: str) -> None:
    box = node.sandbox()
    write(box, "/workspace/file", "first")
    first = keyed(box, key)
    write(box, "/workspace/file", "second")
    stored = node.keys()
    assert keyed(box, key) == first
    assert node.keys() == stored
    restore(box, first)
    assert sh(box, "cat file") == "first"


def test_the_key_counts_across_actors_but_not_across_sandboxes_and_tenants(node: Node, key: str) -> None:
    box = node.sandbox("one")
    write(box, "/workspace/file", "content")
    first = keyed(box, key)
    box.close()
    assert keyed(node.sandbox("one"), key) == first
    others = {keyed(node.sandbox("two"), key).id, keyed(node.sandbox("one", tenant="other"), key).id}
    assert len({first.id, *others}) == 3


def test_other_keys_and_no_key_make_backups_of_their_own(node: Node, key: str) -> None:
    box = node.sandbox()
    write(box, "/workspace/file", "content")
    made = [keyed(box, key), keyed(box, key + "b"), backup(box), backup(box)]
    assert len({handle.id for handle in made}) == 4
    assert all(str(uuid.UUID(handle.id)) == handle.id for handle in made)


def test_a_key_that_was_used_for_another_directory_is_refused(node: Node, key: str) -> None:
    box = node.sandbox()
    sh(box, "mkdir /workspace/a")
    keyed(box, key)
    with pytest.raises(InvalidBackupConfigError, match="another directory"):
        keyed(box, key, "/workspace/a")


def test_a_failed_create_does_not_use_its_key_up(node: Node, key: str) -> None:
    limits = node.config.backup
    node.adjust(backup=limits.model_copy(update={"inodes": 1}))
    small = node.sandbox("small")
    write(small, "/workspace/file", "content")
    with pytest.raises(BackupCreateError):
        keyed(small, key)
    small.close()
    node.adjust(backup=limits)
    assert keyed(node.sandbox("small"), key).dir == "/workspace"
