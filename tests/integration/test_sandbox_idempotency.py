"""Creation of a backup that is repeated with the same idempotency key."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from actors.errors import BackupCreateError, InvalidBackupConfigError, SandboxUnavailableError
from actors.models import BackupOptions, DirectoryBackup
from actors.sandbox.facade import LocalSandbox
from storage import keys
from storage.store import ObjectStore
from tests.support.sandboxes import Node, backup, restore, sh, write


@pytest.fixture
def key() -> str:
    """A fresh key: the bucket outlives the test."""
    return uuid.uuid4().hex


def keyed(box: LocalSandbox, key: str, directory: str = "/workspace") -> DirectoryBackup:
    return box.create_backup(BackupOptions(dir=directory), idempotency_key=key)


def test_a_repeated_create_returns_the_first_backup(kernel_node: Node, key: str) -> None:
    box = kernel_node.sandbox()
    write(box, "/workspace/file", "first")
    first = keyed(box, key)
    write(box, "/workspace/file", "second")
    stored = kernel_node.keys()
    assert keyed(box, key) == first
    assert kernel_node.keys() == stored
    restore(box, first)
    assert sh(box, "cat file") == "first"


def test_the_key_is_shared_by_a_sandboxs_actors_but_not_by_sandboxes_or_tenants(kernel_node: Node, key: str) -> None:
    box = kernel_node.sandbox("one")
    write(box, "/workspace/file", "content")
    first = keyed(box, key)
    box.close()
    assert keyed(kernel_node.sandbox("one"), key) == first
    others = {keyed(kernel_node.sandbox("two"), key).id, keyed(kernel_node.sandbox("one", tenant="other"), key).id}
    assert len({first.id, *others}) == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"x" * 5 * 2**20, b'{"version":1,"backupId":"?"}', None])
def test_a_claim_that_is_damaged_or_of_another_sandbox_is_replaced(
    kernel_node: Node, key: str, damage: bytes | None
) -> None:
    box = kernel_node.sandbox()
    write(box, "/workspace/file", "content")
    first = keyed(box, key)
    others = keyed(kernel_node.sandbox("two"), key)
    document = keys.claim("default", box.id, key)
    store = kernel_node.catalog().store
    store.put(document, store.get(keys.claim("default", "two", key)).data if damage is None else damage)
    second = keyed(box, key)
    assert len({first.id, second.id, others.id}) == 3
    assert keyed(box, key) == second


def test_a_claim_to_a_backup_that_was_tampered_with_is_replaced(kernel_node: Node, key: str) -> None:
    box = kernel_node.sandbox()
    write(box, "/workspace/file", "content")
    first = keyed(box, key)
    metadata = keys.metadata(first.id)
    store = kernel_node.catalog().store
    store.put(metadata, store.get(metadata).data.replace(b'"ttl":', b'"ttl":1'))
    second = keyed(box, key)
    assert second != first
    assert keyed(box, key) == second


def test_a_claim_of_a_later_release_is_not_replaced(kernel_node: Node, key: str) -> None:
    box = kernel_node.sandbox()
    write(box, "/workspace/file", "content")
    document, store = keys.claim("default", box.id, key), kernel_node.catalog().store
    store.put(document, b'{"version":3}')
    with pytest.raises(BackupCreateError) as raised:
        keyed(box, key)
    assert raised.value.context == {"reason": "NEWER_DOCUMENT"}
    assert store.get(document).data == b'{"version":3}'


def test_another_key_or_no_key_makes_a_separate_backup(kernel_node: Node, key: str) -> None:
    box = kernel_node.sandbox()
    write(box, "/workspace/file", "content")
    made = [keyed(box, key), keyed(box, key + "b"), backup(box), backup(box)]
    assert len({handle.id for handle in made}) == 4
    assert all(str(uuid.UUID(handle.id)) == handle.id for handle in made)


def test_a_key_that_was_used_for_another_directory_is_refused(kernel_node: Node, key: str) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir /workspace/a")
    keyed(box, key)
    with pytest.raises(InvalidBackupConfigError, match="another directory"):
        keyed(box, key, "/workspace/a")


def test_a_failed_create_does_not_use_its_key_up(kernel_node: Node, key: str) -> None:
    limits = kernel_node.config.backup
    kernel_node.adjust(backup=limits.model_copy(update={"inodes": 1}))
    small = kernel_node.sandbox("small")
    write(small, "/workspace/file", "content")
    with pytest.raises(BackupCreateError):
        keyed(small, key)
    small.close()
    kernel_node.adjust(backup=limits)
    assert keyed(kernel_node.sandbox("small"), key).dir == "/workspace"


class Meanwhile:
    """A store that runs another action right before its first call of one method."""

    def __init__(self, store: ObjectStore, method: str, act: Callable[[], None]) -> None:
        self._store, self._method, self._act = store, method, act
        self._done = False

    def __getattr__(self, name: str) -> Any:
        if name == self._method and not self._done:
            self._done = True
            self._act()
        return getattr(self._store, name)


def test_a_superseded_actor_makes_no_backup_for_a_key_in_use(kernel_node: Node, key: str) -> None:
    """This happens after a partition: the older actor gets the call while the newer one uploads."""
    refused: list[SandboxUnavailableError] = []
    first = kernel_node.sandbox()
    write(first, "/workspace/file", "content")
    first.ownership.check()

    def as_the_older_one() -> None:
        with pytest.raises(SandboxUnavailableError) as raised:
            keyed(first, key)
        refused.append(raised.value)

    store: Any = Meanwhile(kernel_node.catalog().store, "presign_put", as_the_older_one)
    second = kernel_node.sandbox(catalog=kernel_node.catalog(store))
    before = kernel_node.keys()

    made = keyed(second, key)

    assert refused[0].context["reason"] == "SUPERSEDED"
    new = kernel_node.keys() - before
    assert {name.split("/")[1] for name in new if name.startswith("backups/")} == {made.id}
    assert keyed(second, key) == made
    write(second, "/workspace/file", "lost")
    for archive in kernel_node.layout.cache.glob("*.sqsh"):
        archive.unlink()
    restore(second, made)
    assert sh(second, "cat file") == "content"


def test_a_key_whose_backup_is_deleted_or_expired_makes_a_new_backup(kernel_node: Node, key: str) -> None:
    box = kernel_node.sandbox()
    options = BackupOptions(dir="/workspace", ttl=30)
    short = box.create_backup(options, idempotency_key=key)
    second = box.create_backup(BackupOptions(dir="/workspace"), idempotency_key=key)
    kernel_node.catalog().delete("default", second.id)
    third = keyed(box, key)
    assert len({short.id, second.id, third.id}) == 3
    assert keyed(box, key) == third
