"""An awake sandbox runs as a user of its own; the disk and the archives know the user of all sandboxes only."""

from __future__ import annotations

import io
import os
import re
import signal
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from actors.node import doctor, idmapped, mountinfo, user_namespace
from actors.node.drivers import Driver
from actors.node.idmapped import View
from actors.node.tree import Tree
from actors.node.user_namespace import UserNamespace
from actors.sandbox.facade import LocalSandbox
from tests.support.full_disk import unmounted
from tests.support.mount_leaks import nothing_leaks
from tests.support.sandboxes import UID, Node, backup, crash, described, hydrate, read, restore, run, sh, write

KERNEL = pytest.mark.parametrize("driver", [Driver.KERNEL], indirect=True)
OTHERS = pytest.mark.parametrize("driver", [driver for driver in Driver if driver is not Driver.KERNEL], indirect=True)
CHANGES = """
set -e
cd /workspace/data
echo more >> first                # copied up, with its other name
ln third third-again
mv folder moved
chmod 4711 third
python3 -c 'import os; os.setxattr("third", "user.a", b"b"); os.mkfifo("fifo")'
ln -s first link
rm gone
mkdir -p new/deep
echo new > new/deep/file
echo plain > /workspace/plain
echo home > ~/file
"""


def owners_on_the_disk(home: Path) -> set[int]:
    """The owners of what a sandbox that is not mounted has on the disk: its plain files, and its layers' uppers."""
    roots = [home / "root" / top for top in ("workspace", "home/sandbox", "tmp", "app")]
    roots += (home / "layers").glob("*/upper")
    return {found.st_uid for root in roots for found in statuses(root)} | {
        found.st_gid for root in roots for found in statuses(root)
    }


def statuses(root: Path) -> Iterator[os.stat_result]:
    for folder, folders, files in os.walk(root):
        for name in (".", *folders, *files):
            found = os.stat(os.path.join(folder, name), follow_symlinks=False)
            if not stat.S_ISCHR(found.st_mode):  # a whiteout
                yield found


def owners_in(archive: Path) -> set[str]:
    listed = subprocess.run(["unsquashfs", "-lln", archive], capture_output=True, check=True, text=True).stdout
    return set(re.findall(r"^[-dlpscb][-rwxsStT]{9} +(\d+/\d+) ", listed, re.MULTILINE))


def written(node: Node) -> LocalSandbox:
    """A sandbox with files of every origin, in a restored directory and beside it."""
    box = node.sandbox()
    sh(box, "mkdir -p data/folder; cd data; for n in first third gone folder/file; do echo $n > $n; done")
    sh(box, "cd data; ln first second")
    restore(box, backup(box, "/workspace/data"))
    sh(box, CHANGES)
    write(box, "/workspace/data/by-api", "api")
    write(box, "/workspace/deep/by-api", "api")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("from-tar"))
    hydrate(box, packed.getvalue())
    restore(box, backup(box, "/workspace/data"), "/workspace/data/copied", "copy")
    return box


def only(monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    """Lets the next sandbox have this user only."""
    monkeypatch.setattr(user_namespace, "OWNERS", range(user, user + 1))


@KERNEL
def test_the_disk_and_archives_know_one_owner_whichever_user_a_sandbox_has(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, 61_190)
    box = written(node)
    assert node.owner(box) == 61_190
    handle = backup(box)
    box.close()
    assert owners_on_the_disk(node.home("box")) == {UID}
    assert [owners_in(archive) for archive in node.layout.cache.glob(f"{handle.id}*")] == [{f"{UID}/{UID}"}]

    only(monkeypatch, 65_519)
    again = node.sandbox()
    assert node.owner(again) == 65_519
    assert sh(
        again, "cd data; cat first second third-again new/deep/file by-api copied/third; cat ../plain ~/file"
    ) == ("first\nmore\nfirst\nmore\nthird\nnew\napithird\nplain\nhome\n")
    assert sh(again, "find /workspace ~ -printf '%U %G\\n' | sort -u") == "1000 1000\n"
    assert sh(again, "stat -c %a data/third data/copied/third") == "4711\n4711\n"
    assert os.getxattr(node.tree(again) / "workspace/data/third", "user.a") == b"b"
    sh(again, "cd data; echo again >> second; mv moved folder; rm third; echo 1 > copied/new; mv copied ../copied")
    assert read(again, "/workspace/data/first") == b"first\nmore\nagain\n"
    write(again, "/workspace/data/by-api", "changed")
    again.close()
    assert owners_on_the_disk(node.home("box")) == {UID}


@KERNEL
def test_what_a_killed_actor_left_mounted_is_unmounted_by_the_next_waking(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert crash("tests.support.programs.killed_awake", described(node), "box", "awake").status == -signal.SIGKILL
    root, (layer,) = node.home("box") / "root", (node.home("box") / "layers").iterdir()
    earlier = (root / "workspace").stat().st_uid
    assert earlier != UID
    with closing(UserNamespace(node.data_dir / "owners", UID)) as namespace:
        mapping = namespace.mapping()
        assert mapping is not None
        dying = idmapped.layers(layer, mapping)
        dying.__enter__()  # and it never ends
        assert mountinfo.find(layer / "idmapped/layer") is not None
        monkeypatch.setattr(user_namespace, "OWNERS", [user for user in user_namespace.OWNERS if user != earlier])
        box = node.sandbox()
        assert len(node.mounts()) == 3  # the archive, the layer, and the layer in the tree
        assert len(mountinfo.mounts_under(node.tree(box))) == 2
        assert (
            sh(box, "cd data; grep . *; stat -c %u *") == "added:later\nchanged:later\nkept:original\n" + 3 * "1000\n"
        )
        box.close()
    assert owners_on_the_disk(node.home("box")) == {UID}


@KERNEL
def test_a_copy_belongs_to_the_sandboxs_own_user(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir data; cd data; echo 1 > file; chmod 600 file; mkdir closed; echo 2 > closed/file; chmod 500 closed")
    sh(box, "cd data; chmod 4711 file; ln file again; ln -s file link; mkfifo fifo")
    handle = backup(box, "/workspace/data")
    for place in ("/workspace/copy", "/workspace/data/inner"):
        restore(box, handle)
        restore(box, handle, place, "copy")
        assert sh(box, f"cd {place}; cat file closed/file; stat -c '%u %a' file closed link fifo") == (
            "1\n2\n1000 4711\n1000 500\n1000 777\n1000 644\n"
        )
        sh(box, f"cd {place}; echo more >> again; chmod 700 closed; rm -r closed link fifo")


@KERNEL
def test_sandboxes_that_are_awake_together_have_different_users(node: Node) -> None:
    boxes = [node.sandbox(name) for name in ("one", "two", "three")]
    handle = backup(boxes[0])
    for box in boxes:
        restore(box, handle)
    users = {node.owner(box) for box in boxes}
    assert len(users) == 3 and UID not in users


@OTHERS
def test_a_driver_that_cannot_map_owners_shares_the_user_and_says_so(
    node: Node, capfd: pytest.CaptureFixture[str]
) -> None:
    box = written(node) if node.driver is not Driver.FUSE else node.sandbox()
    assert node.owner(box) == UID
    assert run(box, "id", "-u").stdout == b"1000\n"
    assert capfd.readouterr().out.count("user_shared") == 1
    box.close()
    assert owners_on_the_disk(node.home("box")) == {UID}


def test_a_data_folder_that_cannot_be_mapped_shares_the_user_and_doctor_names_it(scratch: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (scratch / name).mkdir()
    options = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", scratch / "merged"], check=True)
    root, reasons = scratch / "merged" / "root", list[str]()
    try:
        with closing(UserNamespace(scratch / "owners", UID, on_sharing=reasons.append)) as namespace:
            tree = Tree(root, tops=("/workspace",), uid=UID, view=View(root, namespace))
            tree.prepare()
            tree.prepare()
            assert (root / "workspace").stat().st_uid == UID == namespace.user
            assert namespace.mapping() is None and namespace.fd() is not None
            assert mountinfo.find(root) is None
            tree.release()
        assert len(reasons) == 1 and "Invalid argument" in reasons[0]
        found = {finding.name: finding for finding in doctor.examine(scratch / "merged" / "data", UID, driver="none")}
        assert not found["own users"].ok and "Invalid argument" in found["own users"].detail
        assert found["user limits"].ok
    finally:
        unmounted(scratch / "merged")


def test_a_view_is_mounted_once_and_leaves_the_folder_as_it_was(scratch: Path) -> None:
    root = scratch / "root"
    with nothing_leaks(scratch), closing(UserNamespace(scratch / "owners", UID)) as namespace:
        tree = Tree(root, tops=("/workspace",), uid=UID, view=View(root, namespace))
        for _ in range(2):
            tree.prepare()
            tree.prepare()
            assert len(mountinfo.mounts_under(scratch)) == 1
            assert (root / "workspace").stat().st_uid == namespace.user != UID
            tree.release()
            assert (root / "workspace").stat().st_uid == UID
