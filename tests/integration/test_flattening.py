"""Flattening: a full backup with the same content and a new id, or nothing; the incremental one stays."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.errors import BackupCreateError, BackupExpiredError, BackupNotFoundError
from actors.models import DirectoryBackup
from actors.node.drivers import Driver
from actors.node.owners import give
from actors.node.work_folder import remove_unless_in_use
from actors.sandbox.facade import LocalSandbox
from actors.service.flattening import flattening
from storage import keys
from storage.config import BucketConfig
from storage.metadata import BackupRecord
from tests.support.layered import gc, layering_node
from tests.support.sandboxes import Node, backup, crash, described, restore, sh
from tests.support.trees import fingerprint, make_interesting_tree

TREE = "/workspace/tree"
PROGRAM = "tests.support.programs.flatten_killed_at_a_request"


@pytest.fixture
def node(tmp_path: Path, bucket: BucketConfig, best_driver: Driver) -> Iterator[Node]:
    with layering_node(tmp_path, bucket, best_driver) as node:
        yield node


@pytest.fixture
def box(node: Node) -> LocalSandbox:
    return node.sandbox(f"box-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def layered(node: Node, box: LocalSandbox) -> BackupRecord:
    """An incremental backup: files changed, deleted and replaced by directories, hard links, links and modes."""
    sh(box, f"mkdir -p {TREE}/folder {TREE}/old; head -c 300000 /dev/urandom > {TREE}/folder/data")
    sh(box, "for name in file gone kind old/a; do echo $name > $name; done; ln file other; chmod 4755 other", cwd=TREE)
    restore(box, backup(box, TREE), TREE)
    sh(box, "echo new > added; rm gone; rm -r old; rm kind; mkdir -m 2750 kind; ln -s ../away link", cwd=TREE)
    sh(box, "mkfifo pipe; echo > own; chmod 6711 own; touch -d @1000 own kind", cwd=TREE)
    made = node.catalog().get("default", backup(box, TREE, name="nightly").id)
    assert made.is_incremental
    return made


def flatten(node: Node, backup_id: str, *, tenant: str = "default") -> str:
    made = flattening(node.config, node.catalog()).flatten(tenant, backup_id)
    assert not node.layout.flattenings.exists()
    return made


def test_a_flattened_backup_is_a_full_one_that_needs_no_layer(
    node: Node, box: LocalSandbox, layered: BackupRecord
) -> None:
    expected = fingerprint(node.tree(box) / TREE.lstrip("/"))
    made = node.catalog().get("default", flatten(node, layered.id))
    assert made.id != layered.id and not made.is_incremental and made.parent is None and made.version == 1
    for same in ("dir", "name", "ttl", "created_at", "sandbox", "tenant", "uid"):
        assert getattr(made, same) == getattr(layered, same), same
    assert node.catalog().get("default", layered.id) == layered
    assert {layered.id, made.id} <= {row.id for row in node.catalog().page("default", layered.sandbox or "").records}
    node.catalog().delete("default", layered.id)
    for layer in layered.stack:
        node.catalog().store.delete(keys.layer("default", layer.sha256))
    for mode in ("overlay", "copy"):
        restore(box, DirectoryBackup(id=made.id, dir=TREE), f"/workspace/{mode}", mode=mode)
        assert fingerprint(node.tree(box) / "workspace" / mode) == expected


def test_a_tree_that_is_given_to_another_owner_keeps_its_modes(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    make_interesting_tree(root, 1234)
    before = fingerprint(root)
    give(root, uid=4321)
    assert fingerprint(root) == {name: replace(entry, uid=4321, gid=4321) for name, entry in before.items()}


def test_a_full_backup_is_returned_as_it_is(node: Node, box: LocalSandbox) -> None:
    sh(box, f"mkdir -p {TREE}; echo x > {TREE}/x")
    full, before = backup(box, TREE), node.keys()
    assert flatten(node, full.id) == full.id
    assert node.keys() == before


def test_nothing_is_made_of_a_backup_that_is_missing_or_expired_or_lacks_a_layer(
    node: Node, box: LocalSandbox, layered: BackupRecord
) -> None:
    before = node.keys()
    with pytest.raises(BackupNotFoundError):
        flatten(node, str(uuid.uuid4()))
    with pytest.raises(BackupNotFoundError):
        flatten(node, layered.id, tenant="other")
    short = backup(box, TREE, ttl=30)
    with pytest.raises(BackupExpiredError):
        flatten(node, short.id)
    node.catalog().delete("default", short.id)
    key = keys.layer("default", layered.stack[-1].sha256)
    node.catalog().store.put(key, b"another archive")
    with pytest.raises(BackupCreateError):
        flatten(node, layered.id)
    assert {found for found in node.keys() - before if found.startswith(keys.BACKUPS_PREFIX)} == set()


COMMITTED = {("put", "meta.json", "after"), ("put", "sandboxes/", "before"), ("put", "sandboxes/", "after")}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("method", "of"),
    [
        ("get", "meta.json"),
        ("presign_get", "/layers/"),
        ("presign_put", "data.sqsh"),
        ("put", "meta.json"),
        ("put", "sandboxes/"),
    ],
)
def test_a_flattening_that_is_killed_leaves_nothing_or_a_whole_backup(
    node: Node, box: LocalSandbox, layered: BackupRecord, method: str, of: str, when: str
) -> None:
    before = {row.id for row in node.catalog().page("default", layered.sandbox or "").records}
    ended = crash(PROGRAM, described(node), layered.id, method, of, when)
    assert ended.status == -signal.SIGKILL and "survived" not in ended.stdout, ended
    gc(node)
    remove_unless_in_use(node.layout.flattenings)  # as the node sweeper does
    assert not node.layout.flattenings.exists()
    after = {row.id for row in node.catalog().page("default", layered.sandbox or "").records}
    made = after - before
    assert len(made) == ((method, of, when) in COMMITTED)
    found = node.keys()
    archives = {key.split("/")[1] for key in found if key.endswith("data.sqsh")}
    assert archives <= {key.split("/")[1] for key in found if key.endswith("meta.json")}
    for backup_id in (layered.id, *made):
        restore(box, DirectoryBackup(id=backup_id, dir=TREE), f"/workspace/{backup_id}")
        assert sh(box, "cat added", cwd=f"/workspace/{backup_id}") == "new\n"
    assert flatten(node, layered.id) not in after
