"""Adoption: a backup without a signature is checked and signed, once; one that was tampered with is not."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from actors.errors import BackupExpiredError, BackupNotFoundError, BackupRestoreError
from actors.models import DirectoryBackup
from actors.service.adoption import adoption
from storage import keys
from storage.metadata import BackupRecord
from tests.integration.test_sandbox_backups import MODES, foreign
from tests.support.sandboxes import UID, Node, backup, restore, sh
from tests.support.trees import fingerprint

BY_CLOUDFLARE = ("id", "dir", "sizeBytes", "ttl", "createdAt")


@dataclass
class Theirs:
    """A node, and a backup in its bucket that Cloudflare's SDK has written."""

    node: Node
    handle: DirectoryBackup

    def adopt(self, *, tenant: str = "default", owner: str = "default") -> None:
        adoption(self.node.config, self.node.catalog()).adopt(tenant, self.handle.id, owner)

    @property
    def record(self) -> BackupRecord:
        return self.node.catalog().read(self.handle.id)

    @property
    def stored(self) -> tuple[bytes, bytes]:
        store = self.node.catalog().store
        return store.get(keys.metadata(self.handle.id)).data, store.get(keys.archive(self.handle.id)).data

    def write(self, **changes: object) -> None:
        store, key = self.node.catalog().store, keys.metadata(self.handle.id)
        store.put(key, json.dumps({**json.loads(store.get(key).data), **changes}).encode())

    def strip(self) -> None:
        """Reduces the metadata to the fields that Cloudflare's SDK writes."""
        store, key = self.node.catalog().store, keys.metadata(self.handle.id)
        said = json.loads(store.get(key).data)
        store.put(key, json.dumps({name: said[name] for name in BY_CLOUDFLARE}).encode())

    def check_untouched(self, before: tuple[bytes, bytes]) -> None:
        assert self.stored == before
        assert not self.node.layout.adoptions.exists()


@pytest.fixture
def theirs(kernel_node: Node, scratch: Path) -> Theirs:
    tree = scratch / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("theirs\n")
    (tree / "secret").write_text("root only\n")
    (tree / "secret").chmod(0o600)
    return Theirs(kernel_node, foreign(kernel_node, tree, str(uuid.uuid4())))


def test_an_adopted_backup_is_signed_and_keeps_its_fields(theirs: Theirs) -> None:
    metadata, archive = theirs.stored
    theirs.adopt()
    record = theirs.record
    said = json.loads(record.to_json())
    assert {name: said.get(name) for name in json.loads(metadata)} == json.loads(metadata)
    assert theirs.node.catalog().trusted(record)
    assert (record.owner, record.sandbox, record.uid) == ("default", None, None)
    assert (record.sha256, record.digest.has_parts) == (sha256(archive).hexdigest(), True)
    assert (record.files, record.inodes) == (2, 4)
    assert theirs.stored[1] == archive
    assert not theirs.node.layout.adoptions.exists()
    again = theirs.stored
    theirs.adopt()
    assert theirs.stored == again


@pytest.mark.parametrize("mode", MODES)
def test_an_adopted_backup_is_restored_and_belongs_to_the_sandbox(theirs: Theirs, mode: str) -> None:
    box = theirs.node.sandbox()
    with pytest.raises(BackupRestoreError):
        restore(box, theirs.handle, mode=mode)
    theirs.adopt()
    restore(box, theirs.handle, mode=mode)
    assert sh(box, "echo ours >> sub/file; cat sub/file secret") == "theirs\nours\nroot only\n"
    owners = {(row.uid, row.gid) for row in fingerprint(theirs.node.tree(box) / "workspace").values()}
    assert owners == {(UID, UID)}


def test_an_adopted_archive_that_was_changed_later_is_refused(theirs: Theirs) -> None:
    theirs.adopt()
    store, key = theirs.node.catalog().store, keys.archive(theirs.handle.id)
    data = bytearray(store.get(key).data)
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(BackupRestoreError) as raised:
        restore(theirs.node.sandbox(), theirs.handle)
    assert raised.value.context == {"reason": "CORRUPT_ARCHIVE"}


def test_only_the_default_tenant_can_adopt_an_unsigned_backup_for_others(theirs: Theirs) -> None:
    before = theirs.stored
    with pytest.raises(BackupNotFoundError):
        theirs.adopt(tenant="other", owner="other")
    theirs.check_untouched(before)
    theirs.adopt(owner="other")
    assert theirs.record.owner == "other"
    with pytest.raises(BackupNotFoundError):
        theirs.adopt()
    with pytest.raises(BackupNotFoundError):
        restore(theirs.node.sandbox(), theirs.handle)
    restore(theirs.node.sandbox("theirs", tenant="other"), theirs.handle)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"signature": "0" * 64}, "TAMPERED_METADATA"),
        ({"tenant": "default"}, "TAMPERED_METADATA"),
        ({"sizeBytes": 7}, "CORRUPT_ARCHIVE"),
        ({"ttl": "long"}, "CORRUPT_METADATA"),
        ({"version": 3}, "NEWER_DOCUMENT"),
    ],
)
def test_a_backup_with_invalid_metadata_is_not_adopted(theirs: Theirs, changes: dict[str, object], reason: str) -> None:
    theirs.write(**changes)
    before = theirs.stored
    with pytest.raises(BackupRestoreError) as raised:
        theirs.adopt()
    assert raised.value.context == {"reason": reason}
    theirs.check_untouched(before)


def test_expired_missing_and_broken_backups_are_not_adopted(theirs: Theirs) -> None:
    with pytest.raises(BackupNotFoundError):
        adoption(theirs.node.config, theirs.node.catalog()).adopt("default", str(uuid.uuid4()), "default")
    theirs.write(createdAt="2020-01-01T00:00:00.000Z")
    before = theirs.stored
    with pytest.raises(BackupExpiredError):
        theirs.adopt()
    theirs.check_untouched(before)
    theirs.write(createdAt="2126-01-01T00:00:00.000Z")
    theirs.node.catalog().store.put(keys.archive(theirs.handle.id), b"x" * len(before[1]))
    broken = theirs.stored
    with pytest.raises(BackupRestoreError) as raised:
        theirs.adopt()
    assert raised.value.context == {"reason": "BAD_ARCHIVE"}
    theirs.check_untouched(broken)


def test_another_tenants_backup_without_its_signature_is_not_adopted(kernel_node: Node) -> None:
    handle = backup(kernel_node.sandbox("victim", tenant="other"))
    stripped = Theirs(kernel_node, handle)
    stripped.strip()
    before = stripped.stored
    with pytest.raises(BackupRestoreError) as raised:
        stripped.adopt()
    assert raised.value.context == {"reason": "TAMPERED_METADATA"}
    stripped.check_untouched(before)


def test_adoption_returns_our_own_stripped_backup_to_its_sandbox(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    handle = backup(box)
    stripped = Theirs(kernel_node, handle)
    stripped.strip()
    stripped.adopt()
    assert handle.id in {row.id for row in kernel_node.catalog().page("default", box.id).records}
