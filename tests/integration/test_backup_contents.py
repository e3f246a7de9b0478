"""The contents of backups, listed and compared without fetching them, and the changes of a sandbox since one."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.errors import (
    BackupNotFoundError,
    BackupNotListedError,
    DocumentDamagedError,
    FileNotFoundInSandboxError,
    HoldfastError,
    InvalidRequestError,
    NotARegularFileError,
    StorageUnavailableError,
)
from actors.models import (
    BackupFile,
    BackupFilesOptions,
    ChangesPage,
    ContentsSource,
    DirectoryBackup,
    FileKind,
    LiveChangesOptions,
    PageOptions,
)
from actors.sandbox.facade import LocalSandbox
from actors.service.contents import BackupContents
from storage import keys
from storage.errors import StoreUnavailableError
from storage.store import ObjectStore
from tests.integration.test_sandbox_backups import foreign
from tests.support.faulty_store import FaultyStore
from tests.support.held_store import AwayStore
from tests.support.mount_leaks import open_files, wait_until
from tests.support.sandboxes import Node, backup, restore, sh
from tests.support.trees import fingerprint

TREE = """
mkdir -p a/b 'odd\nname' empty; echo 1 > a/b/c; echo 22 > 'a/b!'; chmod 4750 'a/b!'; ln -s ../x a/link
ln a/b/c a/again; mkfifo pipe; printf x > "$(printf 'raw\\377')"; touch -d 2001-02-03T04:05:06.7Z a/b/c
"""


def contents(node: Node, store: ObjectStore | None = None) -> BackupContents:
    return BackupContents(node.config, node.catalog(store))


def files(node: Node, handle: DirectoryBackup, path: str = "/", *, recursive: bool = True) -> list[BackupFile]:
    wanted = BackupFilesOptions(path=path, recursive=recursive, limit=1000)
    return contents(node).files("default", handle.id, wanted).files


def changes(page: ChangesPage) -> dict[str, str]:
    assert page.cursor is None
    return {row.path: " ".join([row.change.value, *row.differs]) for row in page.changes}


def since(box: LocalSandbox, handle: DirectoryBackup, directory: str | None = None) -> dict[str, str]:
    return changes(box.changes_since(LiveChangesOptions(backup_id=handle.id, dir=directory, limit=1000)))


def test_a_backup_lists_what_its_archive_holds(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, TREE)
    handle = backup(box)
    restore(box, handle, "/tmp/copy", "copy")
    held = fingerprint(kernel_node.tree(box) / "tmp" / "copy")

    listed = files(kernel_node, handle)

    assert {os.fsencode(file.path[1:]) for file in listed} == set(held) - {b""}
    root = kernel_node.tree(box) / "workspace"
    for file in listed:
        found = (root / file.path[1:]).lstat()
        assert file.mode == stat.S_IMODE(found.st_mode)
        assert file.size_bytes == (found.st_size if stat.S_ISREG(found.st_mode) else 0)
        assert abs(file.modified_at.timestamp() - found.st_mtime) < 1e-5
    by_path = {file.path: file for file in listed}
    assert (by_path["/a/link"].kind, by_path["/a/link"].target) == (FileKind.SYMLINK, "../x")
    assert by_path["/pipe"].kind is FileKind.OTHER
    assert [file.path for file in files(kernel_node, handle, "/a", recursive=False)] == [
        "/a/again",
        "/a/b",
        "/a/b!",
        "/a/link",
    ]
    assert [file.path for file in files(kernel_node, handle, "/a/b!")] == ["/a/b!"]
    with pytest.raises(FileNotFoundInSandboxError):
        files(kernel_node, handle, "/a/none")


def test_the_files_that_a_backup_leaves_out_are_not_listed(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir kept out; touch kept/x kept/x.log out/y .holdfast-0123456789abcdef")
    handle = backup(box, excludes=["out", "*.log"])
    assert [file.path for file in files(kernel_node, handle)] == ["/kept", "/kept/x"]


def test_two_backups_are_compared(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, TREE)
    first = backup(box)
    sh(box, "echo 333 > 'a/b!'; rm -r empty; chmod 600 a/b/c; mkdir new; echo > new/x; ln -snf y a/link")
    second = backup(box)
    page = contents(kernel_node).changes("default", first.id, second.id, PageOptions())
    assert changes(page) == {
        "/a/again": "changed mode",
        "/a/b!": "changed mode size_bytes modified_at",
        "/a/b/c": "changed mode",
        "/a/link": "changed target",
        "/empty": "removed",
        "/new": "added",
        "/new/x": "added",
    }
    assert (page.compared_by, page.partial) == ("size_and_time", False)
    back = contents(kernel_node).changes("default", second.id, first.id, PageOptions())
    assert changes(back)["/empty"] == "added" and len(back.changes) == len(page.changes)


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_a_sandbox_is_compared_with_a_backup(node: Node, mode: str) -> None:
    box = node.sandbox()
    sh(box, TREE)
    handle = backup(box)
    assert since(box, handle) == {}
    restore(box, handle, mode=mode)
    assert since(box, handle) == {}
    sh(box, "echo 4 >> a/b/c; rm pipe; mkdir -p new/d; touch new/d/x; rm a/link; mkdir a/link")
    sh(box, "touch .holdfast-0123456789abcdef")
    found = since(box, handle)
    found.pop("/a/again", None)  # whether the other name of a changed file changes, too, is up to the mount driver
    assert found == {
        "/a/b/c": "changed size_bytes modified_at",
        "/a/link": "changed kind",
        "/new": "added",
        "/new/d": "added",
        "/new/d/x": "added",
        "/pipe": "removed",
    }


def test_a_sandbox_is_compared_page_by_page_while_it_changes(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir d; for n in $(seq 100 149); do echo > d/$n; done")
    handle = backup(box)
    sh(box, "rm d/1*; for n in $(seq 200 229); do echo > d/$n; done")
    found: list[str] = []
    cursor = None
    while True:
        page = box.changes_since(LiveChangesOptions(backup_id=handle.id, limit=7, cursor=cursor))
        found += [row.path for row in page.changes]
        cursor = page.cursor
        if cursor is None:
            break
        sh(box, "touch d/0new; echo x > d/999")
    assert found == [*(f"/d/{n}" for n in range(100, 150)), *(f"/d/{n}" for n in range(200, 230)), "/d/999"]


def test_another_directory_of_another_sandbox_is_compared(kernel_node: Node) -> None:
    box, other = kernel_node.sandbox(), kernel_node.sandbox("other")
    sh(box, "echo 1 > x")
    handle = backup(box)
    sh(other, "mkdir -p /app/d; cp -a /dev/null /tmp/x; echo 1 > /app/d/y")
    assert since(other, handle, "/app/d") == {"/x": "removed", "/y": "added"}
    with pytest.raises(FileNotFoundInSandboxError):
        since(other, handle, "/app/none")
    with pytest.raises(NotARegularFileError):
        since(other, handle, "/app/d/y")
    sh(other, "ln -s / /app/out")
    with pytest.raises(HoldfastError) as raised:
        since(other, handle, "/app/out")
    assert raised.value.code == "PATH_FORBIDDEN"


def test_the_contents_of_another_tenants_backup_are_missing(kernel_node: Node) -> None:
    handle = backup(kernel_node.sandbox())
    with pytest.raises(BackupNotFoundError):
        contents(kernel_node).files("other", handle.id, BackupFilesOptions())
    with pytest.raises(BackupNotFoundError):
        contents(kernel_node).changes("other", handle.id, handle.id, PageOptions())
    with pytest.raises(BackupNotFoundError):
        since(kernel_node.sandbox("theirs", tenant="other"), handle)


def in_seconds(listed: list[BackupFile]) -> list[BackupFile]:
    return [file.model_copy(update={"modified_at": file.modified_at.replace(microsecond=0)}) for file in listed]


@pytest.mark.parametrize("compression", ["zstd", "lz4", "gzip"])
def test_a_backup_that_lost_its_listing_is_listed_from_its_archive(kernel_node: Node, compression: str) -> None:
    box = kernel_node.sandbox()
    sh(box, TREE)
    handle = backup(box, compression={"format": compression})
    listed = files(kernel_node, handle)
    kernel_node.catalog().store.delete(keys.listing(handle.id))
    page = contents(kernel_node).files("default", handle.id, BackupFilesOptions(recursive=True, limit=1000))
    assert (page.source, page.files) == (ContentsSource.ARCHIVE, in_seconds(listed))
    assert since(box, handle) == {}
    kernel_node.catalog().store.delete(keys.archive(handle.id))
    with pytest.raises(BackupNotFoundError):
        files(kernel_node, handle)


def test_a_backup_of_another_program_is_listed_by_the_default_tenant(kernel_node: Node, scratch: Path) -> None:
    tree = scratch / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("theirs")
    handle = foreign(kernel_node, tree, str(uuid.uuid4()))
    assert [(file.path, file.size_bytes) for file in files(kernel_node, handle)] == [("/sub", 0), ("/sub/file", 6)]
    with pytest.raises(BackupNotFoundError):
        contents(kernel_node).files("other", handle.id, BackupFilesOptions())


def test_a_backup_that_lost_its_signature_shows_its_files_to_nobody(kernel_node: Node) -> None:
    handle = backup(kernel_node.sandbox("theirs", tenant="other"))
    store, key = kernel_node.catalog().store, keys.metadata(handle.id)
    said = json.loads(store.get(key).data)
    store.put(key, json.dumps({name: said[name] for name in ("id", "dir", "sizeBytes", "ttl", "createdAt")}).encode())
    with pytest.raises(DocumentDamagedError):
        files(kernel_node, handle)
    with pytest.raises(DocumentDamagedError):
        since(kernel_node.sandbox(), handle)


def test_a_backup_whose_archive_is_none_is_not_listed(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    handle = backup(box)
    store = kernel_node.catalog().store
    store.delete(keys.listing(handle.id))
    store.put(keys.archive(handle.id), bytes(4096))
    with pytest.raises(BackupNotListedError):
        files(kernel_node, handle)
    with pytest.raises(BackupNotListedError):
        since(box, handle)


@pytest.mark.parametrize("after", [False, True])
def test_a_backup_whose_listing_cannot_be_stored_is_made_without_one(kernel_node: Node, *, after: bool) -> None:
    faulty = FaultyStore(kernel_node.catalog().store)
    box = kernel_node.sandbox(catalog=kernel_node.catalog(faulty))
    sh(box, "echo 1 > x")
    faulty.fail("put", "files.list", after=after)
    handle = backup(box)
    assert faulty.faults == []
    assert kernel_node.catalog().read_signed(handle.id).listing is None
    sh(box, "rm x")
    restore(box, handle)
    assert sh(box, "cat x") == "1\n"
    kernel_node.catalog().delete("default", handle.id)
    left = kernel_node.keys()
    assert not [key for key in left if handle.id in key]


@contextmanager
def damaged(node: Node, handle: DirectoryBackup) -> Iterator[None]:
    store, key = node.catalog().store, keys.listing(handle.id)
    whole = store.get(key).data
    store.put(key, whole[:5] + bytes([whole[5] ^ 1]) + whole[6:])
    yield
    store.put(key, whole)


def test_a_listing_that_was_changed_is_not_believed(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, TREE)
    handle = backup(box)
    with damaged(kernel_node, handle):
        for ask in (
            lambda: files(kernel_node, handle),
            lambda: contents(kernel_node).changes("default", handle.id, handle.id, PageOptions()),
            lambda: since(box, handle),
        ):
            with pytest.raises(DocumentDamagedError) as raised:
                ask()
            assert raised.value.context["document"] == keys.listing(handle.id)
    assert since(box, handle) == {}


def test_a_store_that_is_away_is_told(kernel_node: Node) -> None:
    handle = backup(kernel_node.sandbox())
    away = AwayStore(kernel_node.catalog().store)
    reader = contents(kernel_node, away)
    assert reader.files("default", handle.id, BackupFilesOptions()).source is ContentsSource.LISTING
    away.is_away = True
    with pytest.raises(StorageUnavailableError):
        reader.files("default", handle.id, BackupFilesOptions())


def test_a_comparison_that_fails_leaves_no_directory_open(kernel_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir -p d/e; touch d/e/x d/e/y")
    handle = backup(box)
    sh(box, "touch d/e/a")
    restore(box, handle)

    def fails(*args: object) -> None:
        raise StoreUnavailableError("get", bucket="b")

    before = sorted(open_files())
    monkeypatch.setattr("storage.comparison._differences", fails)
    with pytest.raises(StorageUnavailableError) as kept:
        since(box, handle)
    assert kept.value and wait_until(lambda: sorted(open_files()) == before), open_files()
    monkeypatch.undo()
    restore(box, handle)


def test_a_foreign_cursor_is_refused(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    handle = backup(box)
    with pytest.raises(InvalidRequestError):
        contents(kernel_node).files("default", handle.id, BackupFilesOptions(cursor="x"))
    with pytest.raises(InvalidRequestError):
        box.changes_since(LiveChangesOptions(backup_id=handle.id, cursor="eA==.1"))
    with pytest.raises(BackupNotFoundError):
        since(box, DirectoryBackup(id=str(uuid.uuid4()), dir="/workspace"))


def test_a_hard_linked_link_is_listed_and_backed_up(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "ln -s /somewhere one; ln one two; ln one three")
    handle = backup(box)
    listed = files(kernel_node, handle)
    assert [(file.path, file.kind) for file in listed] == [(f"/{n}", FileKind.SYMLINK) for n in ("one", "three", "two")]
    assert since(box, handle) == {}


def test_a_large_listing_is_uploaded_as_archives_are(kernel_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.sandbox.listing_upload.SMALL_OBJECT_BYTES", 10)
    box = kernel_node.sandbox()
    sh(box, TREE)
    assert "/a/b/c" in {file.path for file in files(kernel_node, backup(box))}
