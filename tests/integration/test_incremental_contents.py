"""An incremental backup is listed and compared as a full backup of the same directory is."""

from __future__ import annotations

import uuid

import pytest

from actors.errors import BackupNotFoundError, BackupNotListedError
from actors.models import BackupFile, BackupFilesOptions, ContentsSource, DirectoryBackup, PageOptions
from actors.sandbox.facade import LocalSandbox
from storage import keys
from tests.integration.test_backup_contents import changes, contents, files, in_seconds, since
from tests.integration.test_incremental_backups import HISTORY, TREE, make_tree, record
from tests.integration.test_incremental_backups import box as box
from tests.integration.test_incremental_backups import node as node
from tests.integration.test_incremental_backups import plain as plain
from tests.support.sandboxes import Node, backup, restore, sh

ANOTHER_HISTORY = """
set -e
rm folder/kind && mkdir folder/kind && echo a directory again > folder/kind/b
rm -r elsewhere && mkdir elsewhere && echo new > elsewhere/b; rm -r folder/deep; : > .wh.file; mkdir .wh..wh..opq
"""
LAST_HISTORY = """
set -e
rm -r folder/kind && echo a file again > folder/kind; mkdir -p folder/deep && : > folder/deep/x; rm .wh.file file
"""


def between(node: Node, before: DirectoryBackup, after: DirectoryBackup) -> dict[str, str]:
    return changes(contents(node).changes("default", before.id, after.id, PageOptions(limit=1000)))


def but_for_times(changed: dict[str, str]) -> dict[str, str]:
    """The changes without the fact that a time differs: archives have whole seconds only."""
    return {path: change.removesuffix(" modified_at") for path, change in changed.items()}


def without_unknown(listed: list[BackupFile]) -> list[BackupFile]:
    """The files in whole seconds, and without targets: a listing does not know those of links with several names."""
    return [file.model_copy(update={"target": None}) for file in in_seconds(listed)]


def source(node: Node, made: DirectoryBackup) -> ContentsSource:
    return contents(node).files("default", made.id, BackupFilesOptions()).source


def test_an_incremental_backup_is_listed_and_compared_as_a_full_one(node: Node, box: LocalSandbox) -> None:
    first = DirectoryBackup(id=box.info().restored[0].backup_id, dir=TREE)
    for depth, history in enumerate((HISTORY, ANOTHER_HISTORY, LAST_HISTORY), start=2):
        sh(box, history, cwd=TREE)
        made, full = backup(box, TREE), backup(box, TREE, full=True)
        assert (record(node, made.id).depth, record(node, full.id).depth) == (depth, 1)
        assert (source(node, made), source(node, full)) == (ContentsSource.ARCHIVE, ContentsSource.LISTING)
        assert without_unknown(files(node, made)) == without_unknown(files(node, full))
        for directory in ("/folder", "/folder/kind", "/.wh.gone"):
            shown = files(node, made, directory, recursive=False)
            assert without_unknown(shown) == without_unknown(files(node, full, directory, recursive=False))
        assert between(node, made, full) == between(node, full, made) == {}
        changed = but_for_times(between(node, first, full))
        assert changed and but_for_times(between(node, first, made)) == changed
        assert since(box, made) == {}
        sh(box, "echo more >> new", cwd=TREE)
        assert since(box, made) == {"/new": "added"}
        sh(box, "rm new", cwd=TREE)
        restore(box, made, TREE)
        assert since(box, made) == {}


def test_pages_of_an_incremental_backup_hold_all_files_once(node: Node, box: LocalSandbox) -> None:
    sh(box, HISTORY, cwd=TREE)
    made = backup(box, TREE)
    found: list[BackupFile] = []
    cursor = None
    while True:
        page = contents(node).files("default", made.id, BackupFilesOptions(recursive=True, limit=2, cursor=cursor))
        found += page.files
        cursor = page.cursor
        if cursor is None:
            break
    assert found == files(node, made)


def test_an_incremental_backup_of_plain_files_that_lost_its_listing_is_listed(node: Node, plain: LocalSandbox) -> None:
    sh(plain, HISTORY, cwd=TREE)
    made = backup(plain, TREE)
    assert record(node, made.id).is_incremental and source(node, made) is ContentsSource.LISTING
    listed = without_unknown(files(node, made))
    node.catalog().store.delete(keys.listing(made.id))
    assert source(node, made) is ContentsSource.ARCHIVE
    assert without_unknown(files(node, made)) == listed
    assert since(plain, made) == {}


def test_an_incremental_backup_is_listed_without_the_backup_below_it(node: Node, box: LocalSandbox) -> None:
    sh(box, HISTORY, cwd=TREE)
    made = backup(box, TREE)
    listed, parent = files(node, made), record(node, made.id).parent
    assert parent is not None
    node.catalog().discard(record(node, parent))
    assert files(node, made) == listed


@pytest.mark.parametrize("number", [0, 1])
def test_a_layer_that_is_missing_or_no_archive_is_told(node: Node, box: LocalSandbox, number: int) -> None:
    sh(box, HISTORY, cwd=TREE)
    made = backup(box, TREE)
    layer = record(node, made.id).stack[number]
    store, key = node.catalog().store, keys.layer("default", layer.sha256)
    store.put(key, bytes(layer.size_bytes))
    for expected in (BackupNotListedError, BackupNotFoundError):
        for ask in (
            lambda: files(node, made),
            lambda: between(node, made, made),
            lambda: since(box, made),
        ):
            with pytest.raises(expected):
                ask()
        store.delete(key)


def test_the_layers_of_another_tenant_are_found_by_that_tenant_only(node: Node) -> None:
    theirs = node.sandbox(f"theirs-{uuid.uuid4().hex[:8]}", tenant="other")
    make_tree(theirs)
    restore(theirs, backup(theirs, TREE), TREE)
    sh(theirs, "echo more > new", cwd=TREE)
    made = backup(theirs, TREE)
    wanted = BackupFilesOptions(path="/new")
    assert [file.path for file in contents(node).files("other", made.id, wanted).files] == ["/new"]
    assert since(theirs, made) == {}
    with pytest.raises(BackupNotFoundError):
        contents(node).files("default", made.id, wanted)
