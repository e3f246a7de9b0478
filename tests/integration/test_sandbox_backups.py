"""Restores on every driver: byte for byte the backed-up tree, repeatedly, in forks and as copies."""

from __future__ import annotations

import os
import shlex
import sqlite3
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from actors.errors import BackupRestoreError, InvalidBackupConfigError
from actors.models import DirectoryBackup, RestoreMode
from actors.node import mountinfo
from actors.node.drivers import Driver, Limit
from storage import keys
from storage.metadata import BackupRecord
from tests.support.mount_leaks import wait_until
from tests.support.s3 import fault_proxy
from tests.support.sandboxes import UID, Background, Node, backup, command, read, restore, run, sh, write
from tests.support.trees import fingerprint, make_interesting_tree

MODES = list(RestoreMode)


@pytest.mark.parametrize("mode", MODES)
def test_the_interesting_tree_comes_back_byte_for_byte(node: Node, mode: RestoreMode) -> None:
    box = node.sandbox()
    tree = node.tree(box) / "workspace" / "tree"
    make_interesting_tree(tree, node.owner(box), max_name_bytes=node.driver.max_name_bytes)
    expected = fingerprint(tree)
    handle = backup(box, "/workspace/tree")
    sh(box, "chmod -R u+rwx tree; find tree -mindepth 1 -delete; echo new > tree/new; touch tree/plain")
    restore(box, handle, mode=mode)
    assert fingerprint(tree) == expected


@pytest.mark.parametrize("mode", MODES)
def test_a_fork_gets_the_content_and_shares_no_writes(node: Node, mode: RestoreMode) -> None:
    parent, child = node.sandbox("parent"), node.sandbox("child")
    sh(parent, "mkdir src; echo one > src/main.py")
    handle = backup(parent)
    restore(child, handle, mode=mode)
    restore(parent, handle)
    sh(child, "echo child > src/main.py; echo more > src/more")
    assert sh(parent, "cat src/main.py; ls src") == "one\nmain.py\n"
    sh(parent, "rm -r src")
    assert sh(child, "cat src/main.py src/more") == "child\nmore\n"


@pytest.mark.parametrize("mode", MODES)
def test_restoring_twice_gives_the_original_both_times(node: Node, mode: RestoreMode) -> None:
    box = node.sandbox()
    write(box, "/workspace/file", "original")
    handle = backup(box)
    for change in ("first", "second"):
        restore(box, handle, mode=mode)
        assert read(box, "/workspace/file") == b"original"
        assert sh(box, "ls -A") == "file\n"
        write(box, "/workspace/file", change)
        write(box, f"/workspace/{change}", change)
    assert wait_until(lambda: len(list(node.home("box").glob("layers/*"))) == (mode is RestoreMode.OVERLAY))


def test_alternating_modes_leave_one_content_and_no_old_layer(node: Node) -> None:
    box = node.sandbox()
    write(box, "/workspace/file", "original")
    handle = backup(box)
    for mode in (RestoreMode.OVERLAY, RestoreMode.COPY, RestoreMode.OVERLAY, RestoreMode.COPY):
        restore(box, handle, mode=mode)
        write(box, "/workspace/extra", mode.value)
        assert [(entry.dir, entry.mode) for entry in box.info().restored] == [("/workspace", mode)]
    assert wait_until(lambda: os.listdir(node.home("box") / "layers") == [])
    assert os.listdir(node.home("box") / "archives") == []
    assert node.mounts() == []
    assert sh(box, "ls -A") == "extra\nfile\n"


def test_a_backup_of_a_restored_directory_holds_the_merged_content(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir keep gone; echo 1 > keep/a; echo 2 > gone/b; ln keep/a keep/linked")
    restore(box, backup(box))
    sh(box, "rm -r gone; echo 3 > keep/c; mkdir renamed; mv keep renamed/ || cp -a keep renamed/")
    expected = fingerprint(node.tree(box) / "workspace")
    second = backup(box)
    other = node.sandbox("other")
    restore(other, second, mode="copy")
    assert fingerprint(node.tree(other) / "workspace").keys() == expected.keys()
    assert sh(other, "cat renamed/keep/a renamed/keep/c; ls") == sh(box, "cat renamed/keep/a renamed/keep/c; ls")


def test_nested_restores_show_both_and_restoring_the_parent_replaces_the_child(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p outer/inner; echo out > outer/file; echo in > outer/inner/file")
    outer, inner = backup(box, "/workspace/outer"), backup(box, "/workspace/outer/inner")
    restore(box, outer)
    restore(box, inner)
    sh(box, "echo changed > outer/inner/file; echo changed > outer/file")
    assert [entry.dir for entry in box.info().restored] == ["/workspace/outer", "/workspace/outer/inner"]
    assert sh(box, "cat outer/file outer/inner/file") == "changed\nchanged\n"
    both = backup(box, "/workspace/outer")
    restore(box, outer)
    assert [entry.dir for entry in box.info().restored] == ["/workspace/outer"]
    assert sh(box, "cat outer/file outer/inner/file") == "out\nin\n"
    assert wait_until(lambda: len(os.listdir(node.home("box") / "layers")) == 1)
    restore(box, both)
    assert sh(box, "cat outer/file outer/inner/file") == "changed\nchanged\n"


def test_a_copy_can_be_restored_inside_a_restored_directory(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p outer/inner; echo in > outer/inner/file")
    outer, inner = backup(box, "/workspace/outer"), backup(box, "/workspace/outer/inner")
    restore(box, outer)
    sh(box, "echo changed > outer/inner/file; echo extra > outer/inner/extra")
    if Limit.DIRECTORIES in node.driver.limits:
        with pytest.raises(BackupRestoreError, match="overlay"):
            restore(box, inner, mode="copy")
        assert sh(box, "ls -A outer; cat outer/inner/*") == "inner\nextra\nchanged\n"
        return
    restore(box, inner, mode="copy")
    assert sh(box, "cat outer/inner/file; ls -A outer outer/inner") == "in\nouter:\ninner\n\nouter/inner:\nfile\n"
    restore(box, inner, "/workspace/outer/fresh", mode="copy")
    assert sh(box, "cat outer/fresh/file") == "in\n"


@pytest.mark.parametrize("mode", MODES)
def test_a_backup_can_be_restored_to_another_place(node: Node, mode: RestoreMode) -> None:
    box = node.sandbox()
    write(box, "/workspace/file", "content")
    handle = backup(box)
    restore(box, handle, "/tmp/a/b/c", mode)
    assert read(box, "/tmp/a/b/c/file") == b"content"
    assert sh(box, "stat -c %U /tmp/a /tmp/a/b") == "sandbox\nsandbox\n"
    sh(box, "echo w > /tmp/a/b/c/w")


@pytest.mark.parametrize("root", ["/workspace", "/home", "/tmp", "/var/tmp", "/app"])
@pytest.mark.parametrize("mode", MODES)
def test_every_writable_root_can_be_backed_up_and_restored(kernel_node: Node, root: str, mode: RestoreMode) -> None:
    box = kernel_node.sandbox()
    write(box, f"{root}/file", "content")
    handle = backup(box, root)
    sh(box, f"rm {root}/file")
    restore(box, handle, mode=mode)
    assert sh(box, f"cat {root}/file") == "content"
    assert run(box, "sh", "-c", f"echo x > {root}/new").exit_code == 0


@pytest.mark.parametrize("compression", [{"format": "gzip"}, {"format": "lz4"}, {"format": "zstd", "level": 19}])
def test_every_compression_can_be_restored_by_every_driver(node: Node, compression: dict[str, object]) -> None:
    box = node.sandbox()
    write(box, "/workspace/file", b"content" * 10_000)
    handle = backup(box, compression=compression)
    restore(box, handle)
    assert read(box, "/workspace/file") == b"content" * 10_000


def test_close_and_a_new_sandbox_over_the_same_folder_keep_every_write(node: Node) -> None:
    first = node.sandbox()
    sh(first, "mkdir -p outer/inner; echo 1 > outer/inner/a")
    outer, inner = backup(first, "/workspace/outer"), backup(first, "/workspace/outer/inner")
    restore(first, outer)
    restore(first, inner)
    sh(first, "echo 2 > outer/b; echo 3 > outer/inner/c; rm outer/inner/a; echo 4 > d")
    first.close()
    assert mountinfo.mounts_under(node.data_dir) == []
    again = node.sandbox()
    assert sh(again, "cat outer/b outer/inner/c d; ls outer/inner") == "2\n3\n4\nc\n"
    assert again.info().restored == first.info().restored
    assert again.info().created_at == first.info().created_at


def test_a_sandbox_still_wakes_after_its_restored_directories_were_moved(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p project/data; echo 1 > project/data/a")
    handle = backup(box, "/workspace/project/data")
    restore(box, handle)
    sh(box, "echo 2 > project/data/b; mv project old")
    assert sh(box, "cat old/data/b") == "2\n"
    box.close()
    assert mountinfo.mounts_under(node.data_dir) == []
    again = node.sandbox()
    assert sh(again, "cat project/data/a project/data/b") == "1\n2\n", "it is where it was restored to"
    sh(again, "mv project moved")
    restore(again, handle)
    assert sh(again, "ls project/data; ls -A moved/data") == "a\n"
    sh(again, "mv project aside; ln -s aside project")
    again.close()
    third = node.sandbox()
    assert sh(third, "cat project/data/a") == "1\n"
    restore(third, handle, "/workspace")
    assert sh(third, "ls") == "a\n"
    third.destroy()
    assert mountinfo.mounts_under(node.data_dir) == []


def test_a_restored_directory_is_mounted_at_its_real_path_though_links_lead_there(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p a/data b/data; echo a > a/data/file; echo b > b/data/file")
    for directory in ("/workspace/a/data", "/workspace/b/data"):
        restore(box, backup(box, directory))
    sh(box, "echo more > a/data/more; mv b c; ln -s a b")
    box.close()
    again = node.sandbox()
    assert sh(again, "cat a/data/file a/data/more; ls -A c/data") == "a\nmore\nfile\n"
    handle = backup(again, "/workspace/a/data")
    restore(again, handle, "/workspace/x")
    assert sh(again, "rm b; mkdir b; cat a/data/file x/more") == "a\nmore\n"
    restore(again, handle, "/workspace/y")
    assert sh(again, "cat b/data/file") == "b\n", "it is shown once nothing lies in its way"


def test_the_latest_restore_to_a_directory_wins_also_through_a_link(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p app/data; echo 1 > app/data/file")
    first = backup(box, "/workspace/app/data")
    restore(box, first)
    sh(box, "mv app app-v1; ln -s app-v1 app; echo 2 > app/data/file")
    restore(box, backup(box, "/workspace/app/data"), "/workspace/app/data")
    sh(box, "echo 3 > app/data/new")
    assert wait_until(lambda: len(list(node.home("box").glob("layers/*"))) == 1)
    box.close()
    again = node.sandbox()
    assert sh(again, "cat app/data/file app/data/new") == "2\n3\n"
    restore(again, first, "/workspace/z")
    assert sh(again, "cat app/data/file app/data/new z/file") == "2\n3\n1\n"


def test_a_restored_directory_hidden_by_a_file_does_not_block_other_restores(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p a/b; echo 1 > a/b/file")
    handle = backup(box, "/workspace/a/b")
    restore(box, handle)
    sh(box, "echo 2 > a/b/new; mv a c; touch a")
    for directory in ("/workspace/x", "/workspace/y"):
        restore(box, handle, directory)
    assert sh(box, "cat x/file y/file; rm a") == "1\n1\n"
    restore(box, handle, "/workspace/z")
    assert sh(box, "cat a/b/file a/b/new; ls -A c/b") == "1\n2\nfile\n"


def test_a_copy_into_a_moved_restored_directory_is_visible_to_the_caller(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p p/data/sub; echo 1 > p/data/sub/file")
    whole, sub = backup(box, "/workspace/p/data"), backup(box, "/workspace/p/data/sub")
    restore(box, whole)
    sh(box, "mv p q")
    restore(box, sub, "/workspace/q/data/sub", mode="copy")
    assert sh(box, "cat q/data/sub/file p/data/sub/file") == "1\n1\n"
    assert list(node.home("box").glob("layers/*/upper/**/.holdfast-*")) == []


def test_a_second_restore_downloads_nothing(kernel_node: Node) -> None:
    with fault_proxy(kernel_node.bucket) as (proxy, through):
        kernel_node.bucket = through
        maker = kernel_node.sandbox("maker")
        write(maker, "/workspace/file", "content")
        handle = backup(maker)
        restore(maker, handle)
        assert proxy.count("get") == 0, "an archive made on this node is in its cache"
        with Node(kernel_node.data_dir.with_name("second"), through, kernel_node.driver) as elsewhere:
            one, other = elsewhere.sandbox("one"), elsewhere.sandbox("other")
            restore(one, handle)
            fetched = proxy.count("get")
            assert fetched >= 1
            restore(one, handle)
            restore(other, handle, mode="copy")
            assert proxy.count("get") == fetched
            assert read(other, "/workspace/file") == b"content"


def test_the_fuse_driver_refuses_unsupported_names_and_a_copy_accepts_them(node: Node) -> None:
    box = node.sandbox()
    name = "x" * 252
    write(box, f"/workspace/{name}", "content")
    handle = backup(box)
    sh(box, "rm *; echo here > here")
    if node.driver is Driver.FUSE:
        with pytest.raises(BackupRestoreError, match="252 bytes") as raised:
            restore(box, handle)
        assert "copy" in (raised.value.hint or "")
        assert sh(box, "cat here") == "here\n"
        restore(box, handle, mode="copy")
    else:
        restore(box, handle)
    sh(box, f"echo more >> {name}")
    assert read(box, f"/workspace/{name}") == b"contentmore\n"


def test_names_that_look_like_whiteouts_of_fuse_overlayfs_hide_nothing(node: Node) -> None:
    box = node.sandbox()
    sh(box, "echo 1 > victim; echo 2 > .wh.victim; mkdir d; touch d/.wh..wh..opq d/x")
    expected = sh(box, "find . | sort")
    handle = backup(box)
    if node.driver is Driver.FUSE:
        with pytest.raises(BackupRestoreError, match=r"\.wh\."):
            restore(box, handle)
        restore(box, handle, mode="copy")
    else:
        restore(box, handle)
    assert sh(box, "find . | sort") == expected


def foreign(node: Node, tree: Path, handle_id: str, directory: str = "/workspace") -> DirectoryBackup:
    """A backup as the Cloudflare SDK writes it: six fields, no signature, files owned by root."""
    archive = tree.with_suffix(".sqsh")
    subprocess.run(
        ["mksquashfs", ".", str(archive), "-comp", "lz4", "-noappend", "-quiet", "-no-progress"],
        cwd=tree, check=True, capture_output=True,
    )  # fmt: skip
    record = (
        f'{{"id":"{handle_id}","dir":"{directory}","name":null,"sizeBytes":{archive.stat().st_size},'
        f'"ttl":259200,"createdAt":"2126-01-01T00:00:00.000Z"}}'
    )
    catalog = node.catalog()
    catalog.store.put(keys.archive(handle_id), archive.read_bytes())
    catalog.store.put(keys.metadata(handle_id), record.encode())
    return DirectoryBackup(id=handle_id, dir=directory)


@pytest.mark.parametrize("mode", MODES)
def test_a_foreign_archive_is_converted_and_belongs_to_the_sandbox(
    node: Node, scratch: Path, mode: RestoreMode
) -> None:
    tree = scratch / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("theirs")
    (tree / "sub" / "program").write_text("#!/bin/sh\nid -u\n")
    (tree / "sub" / "program").chmod(0o6755)
    (tree / "secret").write_text("root only")
    (tree / "secret").chmod(0o600)
    os.mknod(tree / "device", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    handle = foreign(node, tree, f"00000000-0000-4000-8000-0000000000{'01' if mode is MODES[0] else '02'}")
    node.adjust(restore_unsigned=True)
    box = node.sandbox()
    try:
        restore(box, handle, mode=mode)
    except BackupRestoreError as e:
        assert "device" not in str(e)
        os.unlink(tree / "device")
        handle = foreign(node, tree, handle.id)
        restore(box, handle, mode=mode)
    sh(box, "echo ours >> sub/file; cat secret; mv secret moved; mkdir new; sub/program")
    assert read(box, "/workspace/sub/file") == b"theirsours\n"
    for entry in fingerprint(node.tree(box) / "workspace").values():
        assert (entry.uid, entry.gid) == (UID, UID)
        assert not stat.S_ISBLK(entry.kind)
        assert not entry.mode & (stat.S_ISUID | stat.S_ISGID)


@pytest.mark.parametrize("name", ["x" * 252, ".wh.other"])
def test_a_foreign_archive_cannot_harm_the_fuse_driver(node: Node, scratch: Path, name: str) -> None:
    tree = scratch / "tree"
    tree.mkdir()
    (tree / name).write_text("long")
    (tree / "other").write_text("there")
    number = 3 + 2 * list(Driver).index(node.driver) + (name[0] == "x")
    node.adjust(restore_unsigned=True)
    box = node.sandbox()
    handle = foreign(node, tree, f"00000000-0000-4000-8000-{number:012d}")
    if node.driver is Driver.FUSE:
        with pytest.raises(BackupRestoreError):
            restore(box, handle)
        assert box.info().restored == []
    else:
        restore(box, handle)
        sh(box, f"cat other; echo x >> {name}")


def test_excludes_and_gitignore_leave_out_the_same_files_as_git(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(
        box,
        "mkdir -p node_modules/x src/build logs src/deep; touch node_modules/x/y src/build/o src/main.py logs/a.log"
        " src/keep.log src/b.log src/deep/secret 'we ird*'; printf '*.log\\n!keep.log\\nbuild/\\n' > .gitignore;"
        " printf 'secret\\n' > src/.gitignore",
    )
    plain = backup(box)
    ignoring = backup(box, gitignore=True)
    both = backup(box, gitignore=True, excludes=["/node_modules", "we ird\\*", "**/deep"])
    found = {}
    for name, handle in (("plain", plain), ("ignoring", ignoring), ("both", both)):
        restore(box, handle, f"/tmp/{name}", "copy")
        found[name] = set(sh(box, "find . -type f | sort", cwd=f"/tmp/{name}").split("\n")) - {""}
    everything = {
        "./node_modules/x/y", "./src/build/o", "./src/main.py", "./logs/a.log", "./src/keep.log", "./src/b.log",
        "./src/deep/secret", "./we ird*", "./.gitignore", "./src/.gitignore",
    }  # fmt: skip
    assert found["plain"] == everything
    ignored = {"./src/build/o", "./logs/a.log", "./src/b.log", "./src/deep/secret"}
    assert found["ignoring"] == everything - ignored
    assert found["both"] == everything - ignored - {"./node_modules/x/y", "./we ird*"}


def test_tracked_files_are_backed_up_though_gitignore_rules_match_them(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(
        box,
        "git init -q; mkdir -p app/logs; touch app/main.py app/prod.env app/local.env app/logs/a app/logs/b;"
        " printf '*.env\\nlogs/\\n' > .gitignore; git add -f app/prod.env app/logs/a",
    )
    restore(box, backup(box, "/workspace/app", gitignore=True), "/tmp/app", "copy")
    assert sh(box, "find . -type f | sort", cwd="/tmp/app").split() == ["./logs/a", "./main.py", "./prod.env"]
    restore(box, backup(box, gitignore=True), "/tmp/all", "copy")
    assert sh(box, "git status --porcelain --ignored; git fsck", cwd="/tmp/all").split("\n")[:2] == [
        "A  app/logs/a", "A  app/prod.env",
    ]  # fmt: skip


PROGRAMS = Path(__file__).parents[1] / "support" / "programs"
WRITER = (PROGRAMS / "database_writer.py").read_text()


def test_a_backup_of_a_running_writers_database_is_consistent(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    python = "/usr/bin/python3"
    if run(box, python, "-c", "import sqlite3").exit_code != 0:
        python = ""
        (kernel_node.tree(box) / "workspace" / "go").touch()
    script = (
        f"exec {python} -c {shlex.quote(WRITER)}"
        if python
        else "n=0; while :; do n=$((n+1)); echo $n > one; echo $n > two; [ $n -eq 3 ] && echo ready; done"
    )
    with command(box, script) as writer:
        handles = [backup(box) for _ in range(6)]
        assert not writer.ended, "the writer goes on after each backup"
    for number, handle in enumerate(handles):
        restore(box, handle, f"/tmp/{number}", "copy")
        folder = kernel_node.tree(box) / "tmp" / str(number)
        if python:
            with sqlite3.connect(folder / "base.db") as base:
                assert base.execute("pragma integrity_check").fetchone() == ("ok",)
                counts = base.execute("select a, count(*) from t group by a").fetchall()
                assert all(count == 20 for _, count in counts)
            base.close()
        else:
            one, two = ((folder / name).read_text() or "0" for name in ("one", "two"))
            assert int(one) - int(two) in (0, 1) or two == "0"


def test_commands_go_on_after_a_backup_and_new_ones_wait_for_it(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    begun, may_end = threading.Event(), threading.Event()
    create = box.parts.archiver.create

    def held(*args: Any, **options: Any) -> Any:
        begun.set()
        assert may_end.wait(60)
        return create(*args, **options)

    with command(box, "echo started; while [ ! -e go ]; do :; done; echo done") as waiting:
        box.parts.archiver.create = held  # type: ignore[method-assign]
        making = Background(lambda: backup(box))
        assert begun.wait(60)
        meanwhile = Background(lambda: sh(box, "echo too"))
        assert not wait_until(lambda: meanwhile.ended, timeout_s=0.5)
        may_end.set()
        making.result()
        assert meanwhile.result() == "too\n"
        assert not waiting.ended
        write(box, "/workspace/go", "")
        assert waiting.result().stdout == b"started\ndone\n"


def test_the_backups_record_describes_its_archive(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir d; echo content > d/a; ln d/a d/b; ln -s a d/c")
    handle = backup(box, "/workspace/d", name="a name", ttl=3600)
    record: BackupRecord = kernel_node.catalog().get("default", handle.id)
    assert (record.dir, record.name, record.ttl, record.sandbox) == ("/workspace/d", "a name", 3600, "box")
    assert (record.files, record.inodes, record.max_name_bytes, record.uid) == (1, 3, 1, UID)
    assert kernel_node.catalog().trusted(record)


@pytest.mark.parametrize("directory", ["/workspace/none", "/workspace/file", "/workspace/out", "/workspace/dangling"])
def test_a_directory_that_cannot_be_backed_up_is_the_callers_error(kernel_node: Node, directory: str) -> None:
    box = kernel_node.sandbox()
    sh(box, "touch file; ln -s /etc out; ln -s /nowhere dangling")
    box.ownership.check()  # its epoch is claimed
    before = kernel_node.keys()
    with pytest.raises(InvalidBackupConfigError):
        backup(box, directory)
    assert kernel_node.keys() == before


@pytest.mark.parametrize("directory", ["/workspace/file", "/workspace/file/x", "/workspace/out", "/workspace/dangling"])
@pytest.mark.parametrize("mode", MODES)
def test_a_target_that_cannot_be_restored_to_is_the_callers_error(
    kernel_node: Node, directory: str, mode: RestoreMode
) -> None:
    box = kernel_node.sandbox()
    handle = backup(box)
    sh(box, "touch file; ln -s /etc out; ln -s /nowhere dangling")
    with pytest.raises(InvalidBackupConfigError):
        restore(box, handle, directory, mode)
    assert sh(box, "ls -A") == "dangling\nfile\nout\n"


def test_a_directory_reached_through_a_link_is_archived_itself(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir real; echo x > real/file; ln -s real link")
    handle = backup(box, "/workspace/link")
    restore(box, handle, "/workspace/again", "copy")
    assert sh(box, "cat again/file") == "x\n"
    sh(box, "echo y > real/file")
    restore(box, handle, "/workspace/link")
    assert sh(box, "cat real/file; readlink link") == "x\nreal\n"
