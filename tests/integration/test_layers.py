"""Layers on real mounts, with every driver. Needs root, FUSE, loop devices and a file system that overlays accept."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.node import mountinfo, mounting
from actors.node.archive_cache import CachedArchive
from actors.node.drivers import Driver, Limit
from actors.node.errors import LayerMismatchError, MountBusyError, MountError
from actors.node.layers import Layer, Layers
from actors.node.records import sealed, unsealed
from tests.support.damage import DAMAGE
from tests.support.mount_leaks import child_named, children, loop_devices, nothing_leaks, wait_until
from tests.support.trees import fingerprint, make_interesting_tree

UID = 23_456
OTHER_SHA = "f" * 64
Archive = tuple[Path, str]


class Box:
    """The layers of one sandbox, as its actor has them."""

    def __init__(self, folder: Path, driver: Driver) -> None:
        self.root = folder / "box" / "layers"
        self.lowers = folder / "lowers"
        self.driver = driver
        self.lost: queue.Queue[Layer] = queue.Queue()
        self.layers = self.another()

    def another(self) -> Layers:
        return Layers(self.root, self.lowers, driver=self.driver, on_lost=self.lost.put)


@pytest.fixture
def box(tmp_path: Path, driver: Driver) -> Iterator[Box]:
    with nothing_leaks(tmp_path):
        box = Box(tmp_path, driver)
        yield box
        mounting.sweep(tmp_path)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Two directories, a few files, hard links."""
    tree = tmp_path / "tree"
    (tree / "src" / "deep").mkdir(parents=True)
    (tree / "src" / "main.py").write_text("print('hello')\n")
    (tree / "src" / "deep" / "data").write_bytes(bytes(100_000))
    (tree / "first").write_text("linked")
    (tree / "second").hardlink_to(tree / "first")
    return pack(tree, tmp_path / "archive.sqsh")


def pack(tree: Path, archive: Path) -> Archive:
    argv = ["mksquashfs", ".", str(archive), "-comp", "zstd", "-noappend", "-quiet", "-no-progress"]
    subprocess.run(argv, cwd=tree, check=True, capture_output=True)
    return archive, hashlib.sha256(archive.read_bytes()).hexdigest()


@contextlib.contextmanager
def running(*argv: str, cwd: Path | None = None) -> Iterator[None]:
    """A process that prints a line when it is ready, and is killed at the end of the block."""
    with subprocess.Popen(argv, cwd=cwd, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def occupy(folder: Path) -> contextlib.AbstractContextManager[None]:
    return running("sh", "-c", "echo ready; exec sleep 60", cwd=folder)


def test_a_layer_shows_exactly_what_was_archived(box: Box, tmp_path: Path) -> None:
    make_interesting_tree(tmp_path / "tree", UID, max_name_bytes=box.driver.max_name_bytes)
    expected = fingerprint(tmp_path / "tree")
    layer = box.layers.create(*pack(tmp_path / "tree", tmp_path / "a.sqsh"))
    assert fingerprint(layer.merged) == expected
    box.layers.discard(layer)


# Limits of the drivers: through squashfuse the index of a kernel overlay has no file handles to remember hard links by,
# so a copied-up link is a separate file after the next mount; fuse-overlayfs gives EIO when it touches a fifo.
NOT_CHANGEABLE = {
    Driver.KERNEL: [],
    Driver.MIXED: [b"second link"],
    Driver.ROOTLESS: [b"second link"],
    Driver.FUSE: [b"fifo"],
}


def test_the_interesting_tree_can_be_changed_and_opened_again(box: Box, tmp_path: Path) -> None:
    make_interesting_tree(tmp_path / "tree", UID, max_name_bytes=box.driver.max_name_bytes)
    archive = pack(tmp_path / "tree", tmp_path / "a.sqsh")
    layer = box.layers.create(*archive)
    for name in os.listdir(os.fsencode(layer.merged)):
        if name not in NOT_CHANGEABLE[box.driver]:
            os.utime(os.path.join(os.fsencode(layer.merged), name), (5, 5), follow_symlinks=False)  # a copy-up
    os.chmod(layer.merged, 0o700)
    changed = fingerprint(layer.merged)
    box.layers.close(layer)
    assert fingerprint(box.layers.open(layer.id, *archive).merged) == changed
    box.layers.discard(layer)


def test_writes_land_in_the_upper_and_survive_close_and_open(box: Box, archive: Archive) -> None:
    layer = box.layers.create(*archive)
    (layer.merged / "new").write_text("written")
    (layer.merged / "src" / "main.py").write_text("changed")
    (layer.merged / "second").unlink()
    assert (layer.folder / "upper" / "new").read_text() == "written"
    box.layers.close(layer)
    assert mountinfo.mounts_under(layer.folder) == []
    assert not (layer.merged / "new").exists()
    again = box.layers.open(layer.id, *archive)
    assert again == layer
    assert (again.merged / "new").read_text() == "written"
    assert (again.merged / "src" / "main.py").read_text() == "changed"
    assert not (again.merged / "second").exists()
    assert box.lost.empty()
    box.layers.discard(layer)


def test_discard_leaves_no_mount_no_process_and_no_folder(box: Box, archive: Archive, tmp_path: Path) -> None:
    before = children().keys()
    layer = box.layers.create(*archive)
    assert box.layers.ids() == [layer.id]
    box.layers.discard(layer)
    assert mountinfo.mounts_under(tmp_path) == []
    assert not children().keys() - before
    assert list(box.root.iterdir()) == []
    assert box.layers.ids() == []
    assert box.lost.empty()


def test_discard_deletes_trees_deeper_than_python_can_recurse(box: Box, archive: Archive) -> None:
    layer = box.layers.create(*archive)
    subprocess.run(["sh", "-c", "for i in $(seq 1500); do mkdir d; cd -P d; done"], cwd=layer.merged, check=True)
    box.layers.discard(layer)
    assert box.layers.ids() == []


@pytest.mark.parametrize("damage", ["empty", "no squashfs", "cut off", "missing"])
def test_create_with_a_broken_archive_leaves_nothing(box: Box, archive: Archive, tmp_path: Path, damage: str) -> None:
    path, sha256 = archive
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "no squashfs": b"x" * 70_000, "cut off": whole[:200]}[damage])
    before = children().keys()
    with pytest.raises(MountError):
        box.layers.create(path, sha256)
    assert mountinfo.mounts_under(tmp_path) == []
    assert wait_until(lambda: loop_devices(tmp_path) == [])
    assert not children().keys() - before
    assert box.layers.ids() == []
    assert not (box.lowers / sha256).exists()
    assert box.lost.empty()


def test_layers_of_one_archive_are_independent(box: Box, archive: Archive) -> None:
    first, second = box.layers.create(*archive), box.layers.create(*archive)
    (first.merged / "only here").touch()
    assert not (second.merged / "only here").exists()
    box.layers.discard(first)
    assert (second.merged / "first").read_text() == "linked"
    box.layers.discard(second)


def test_both_mounts_ignore_setuid_and_devices(box: Box, archive: Archive, tmp_path: Path) -> None:
    layer = box.layers.create(*archive)
    mounts = mountinfo.mounts_under(tmp_path)
    assert len(mounts) == 2
    assert all(mount.options >= {"nosuid", "nodev"} for mount in mounts)
    box.layers.discard(layer)


def test_the_overlays_mount_options_show_no_path_of_the_node(box: Box, archive: Archive, tmp_path: Path) -> None:
    layer = box.layers.create(*archive)
    mount = mountinfo.find(layer.merged)
    assert mount is not None
    assert "/" not in ",".join([mount.source, *mount.super_options])
    box.layers.discard(layer)


def test_renaming_a_restored_directory_works_unless_the_driver_declares_that_limit(box: Box, archive: Archive) -> None:
    layer = box.layers.create(*archive)
    if Limit.DIRECTORIES in box.driver.limits:
        with pytest.raises(OSError) as raised:
            (layer.merged / "src").rename(layer.merged / "renamed")
        assert raised.value.errno == errno.EXDEV
    else:
        (layer.merged / "src").rename(layer.merged / "renamed")
        box.layers.close(layer)
        box.layers.open(layer.id, *archive)
        assert (layer.merged / "renamed" / "main.py").read_text() == "print('hello')\n"
    box.layers.discard(layer)


# fuse-overlayfs crashes on changed fifos.
@pytest.mark.parametrize("driver", [driver for driver in Driver if Limit.FIFOS not in driver.limits], indirect=True)
def test_a_layer_can_be_mounted_after_changes_to_hard_linked_special_files(box: Box, tmp_path: Path) -> None:
    tree = tmp_path / "specials"
    tree.mkdir()
    for name in ("renamed", "removed", "changed"):
        os.mkfifo(tree / name)
        (tree / f"{name} too").hardlink_to(tree / name)
    layer = box.layers.create(*(archive := pack(tree, tmp_path / "specials.sqsh")))
    acts: tuple[Callable[[], object], ...] = (
        lambda: (layer.merged / "renamed").rename(layer.merged / "moved"),
        lambda: (layer.merged / "removed").unlink(),
        lambda: (layer.merged / "changed").chmod(0o600),
    )
    refused = (PermissionError,) if Limit.SPECIAL_LINKS in box.driver.limits else ()
    for act in acts:
        with contextlib.suppress(*refused):
            act()
    (layer.merged / "later").write_text("written")
    for _ in range(2):
        box.layers.close(layer)
        box.layers.open(layer.id, *archive)
        assert (layer.merged / "later").read_text() == "written"
    box.layers.discard(layer)


def test_a_layer_in_use_is_not_unmounted_and_stays_intact(box: Box, archive: Archive) -> None:
    layer = box.layers.create(*archive)
    with occupy(layer.merged / "src"):
        with pytest.raises(MountBusyError):
            box.layers.discard(layer, deadline_s=0.1)
        (layer.merged / "still").write_text("works")
    box.layers.close(layer)
    box.layers.open(layer.id, *archive)
    assert (layer.merged / "still").read_text() == "works"
    assert box.lost.empty()
    box.layers.discard(layer)


def test_a_layer_held_by_another_mount_namespace_is_not_deleted(box: Box, archive: Archive) -> None:
    layer = box.layers.create(*archive)
    (layer.merged / "kept").touch()
    hold = "cd merged/src; echo ready; exec sleep 60"
    with running("unshare", "--mount", "--propagation", "private", "sh", "-c", hold, cwd=layer.folder):
        with pytest.raises(MountBusyError):
            box.layers.discard(layer, deadline_s=0.3)
        assert (layer.folder / "upper" / "kept").exists()
    box.layers.discard(layer)
    assert box.layers.ids() == []


def test_a_layer_over_several_archives_is_opened_again_and_not_deleted_while_it_is_held(
    kernel_box: Box, archive: Archive, tmp_path: Path
) -> None:
    (tmp_path / "changes").mkdir()
    (tmp_path / "changes" / "first").write_text("newer")
    above = [CachedArchive(*pack(tmp_path / "changes", tmp_path / "changes.sqsh"))]
    layer = kernel_box.layers.create(*archive, above)
    assert [(layer.merged / name).read_text() for name in ("first", "second")] == ["newer", "linked"]
    (layer.merged / "kept").touch()
    kernel_box.layers.close(layer)
    with pytest.raises(LayerMismatchError):
        kernel_box.layers.open(layer.id, *archive)
    layer = kernel_box.layers.open(layer.id, *archive, above)
    hold = "cd merged/src; echo ready; exec sleep 60"
    with running("unshare", "--mount", "--propagation", "private", "sh", "-c", hold, cwd=layer.folder):
        with pytest.raises(MountBusyError):
            kernel_box.layers.discard(layer, deadline_s=0.3)
        assert (layer.upper / "kept").exists()
    kernel_box.layers.discard(layer)
    assert kernel_box.layers.ids() == []


def test_the_record_names_driver_options_and_archive(box: Box, archive: Archive) -> None:
    layer = box.layers.create(*archive)
    assert json.loads(unsealed((layer.folder / "layer.json").read_bytes())) == {
        "version": 1,
        "driver": str(box.driver),
        "options": box.driver.overlay_options,
        "archiveSha256": archive[1],
    }
    box.layers.discard(layer)


@pytest.mark.parametrize("mismatch", ["archive", "driver", "options", "no record"])
def test_a_layer_whose_record_does_not_match_is_refused(
    box: Box, archive: Archive, tmp_path: Path, mismatch: str
) -> None:
    layer = box.layers.create(*archive)
    box.layers.close(layer)
    path, sha256 = archive
    records = [layer.folder / "layer.json", layer.folder / "layer.json.copy"]
    text = unsealed(records[0].read_bytes()).decode()
    for record in records:
        if mismatch == "archive":
            sha256 = OTHER_SHA
        elif mismatch == "driver":
            other = next(other for other in Driver if other is not box.driver)
            record.write_bytes(sealed(text.replace(f'"{box.driver}"', f'"{other}"')))
        elif mismatch == "options":
            record.write_bytes(sealed(text.replace(box.driver.overlay_options, "something=else")))
        else:
            record.unlink()
    with pytest.raises(LayerMismatchError):
        box.layers.open(layer.id, path, sha256)
    assert mountinfo.mounts_under(tmp_path) == []


@pytest.mark.parametrize("name", ["layer.json", "layer.json.copy"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_layer_whose_record_is_damaged_opens_with_its_writes(
    box: Box, archive: Archive, name: str, damage: str
) -> None:
    layer = box.layers.create(*archive)
    (layer.merged / "written").write_text("kept")
    box.layers.close(layer)
    before = [(layer.folder / name).read_bytes() for name in ("layer.json", "layer.json.copy")]
    DAMAGE[damage](layer.folder / name)
    again = box.layers.open(layer.id, *archive)
    assert (again.merged / "written").read_text() == "kept"
    assert [(layer.folder / name).read_bytes() for name in ("layer.json", "layer.json.copy")] == before
    box.layers.discard(again)


@pytest.mark.parametrize("layer_id", ["..", "a/b", "", "A" * 32])
def test_only_ids_of_layers_become_paths(box: Box, archive: Archive, layer_id: str) -> None:
    with pytest.raises(MountError):
        box.layers.open(layer_id, *archive)


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    ("driver", "victim"),
    [
        (Driver.MIXED, "squashfuse_ll"),
        (Driver.ROOTLESS, "squashfuse_ll"),
        (Driver.FUSE, "squashfuse_ll"),
        (Driver.FUSE, "fuse-overlayfs"),
    ],
    indirect=["driver"],
)
def test_a_killed_daemon_is_noticed_and_the_layer_revived(
    box: Box, archive: Archive, victim: str, *, busy: bool
) -> None:
    before = children().keys()
    layer = box.layers.create(*archive)
    (layer.merged / "closed").write_text("kept")
    with (layer.merged / "open").open("w") as file:
        file.write("synced")
        file.flush()
        os.fsync(file.fileno())
        with occupy(layer.merged) if busy else contextlib.nullcontext():
            os.kill(child_named(victim), signal.SIGKILL)
            assert box.lost.get(timeout=60) == layer
            assert wait_until(lambda: not {"squashfuse_ll", "fuse-overlayfs"} & set(children().values()))
            if busy:
                with pytest.raises(MountBusyError):
                    box.layers.revive(layer, deadline_s=0.1)
        with contextlib.suppress(OSError):
            file.close()
    box.layers.revive(layer)
    assert (layer.merged / "closed").read_text() == "kept"
    assert (layer.merged / "open").read_text() == "synced"
    assert (layer.merged / "first").read_text() == "linked"
    box.layers.discard(layer)
    assert not children().keys() - before
    assert box.lost.empty()


CRASH = "tests.support.programs.layer_killed"


def crash(box: Box, archive: Archive) -> str:
    """Lets another process create a layer, write to it and die; returns the layer's id."""
    argv = [sys.executable, "-m", CRASH, str(box.root), str(box.lowers), str(archive[0]), archive[1], box.driver]
    died = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    assert died.returncode == -signal.SIGKILL
    return died.stdout.strip()


def test_a_layer_of_a_killed_actor_is_opened_with_its_writes(box: Box, archive: Archive) -> None:
    layer_id = crash(box, archive)
    left = mountinfo.find(box.root / layer_id / "merged")
    layer = box.layers.open(layer_id, *archive)
    assert (layer.merged / "written").read_text() == "before the crash"
    assert (layer.merged / "first").read_text() == "linked"
    if box.driver is Driver.KERNEL:
        assert mountinfo.find(layer.merged) == left, "it is adopted"
    box.layers.discard(layer)


def test_a_layer_of_a_killed_actor_can_be_deleted_unopened(box: Box, archive: Archive, tmp_path: Path) -> None:
    layer_id = crash(box, archive)
    box.layers.discard_leftover(layer_id)
    box.layers.release_unused_lowers()
    assert mountinfo.mounts_under(tmp_path) == []
    assert box.layers.ids() == []


def test_an_open_layer_cannot_be_discarded_as_a_leftover(box: Box, archive: Archive) -> None:
    layer = box.layers.create(*archive)
    with pytest.raises(MountBusyError):
        box.layers.discard_leftover(layer.id)
    assert (layer.merged / "first").exists()
    box.layers.discard(layer)


def test_sweep_clears_what_a_killed_actor_left(box: Box, archive: Archive, tmp_path: Path) -> None:
    crash(box, archive)
    crash(box, archive)
    assert mountinfo.mounts_under(tmp_path) != []
    assert mounting.sweep(tmp_path) == []
    assert mountinfo.mounts_under(tmp_path) == []


@pytest.fixture
def kernel_box(tmp_path: Path) -> Iterator[Box]:
    with nothing_leaks(tmp_path):
        yield Box(tmp_path, Driver.KERNEL)
        mounting.sweep(tmp_path)


def squashfs_mounts(folder: Path) -> list[Path]:
    return [mount.point for mount in mountinfo.mounts_under(folder) if mount.fs_type == "squashfs"]


def test_sandboxes_share_one_kernel_lower_until_the_last_is_closed(
    kernel_box: Box, archive: Archive, tmp_path: Path
) -> None:
    one, other = kernel_box.layers, kernel_box.another()
    first, second = one.create(*archive), other.create(*archive)
    assert squashfs_mounts(tmp_path) == [kernel_box.lowers / archive[1]]
    assert len(loop_devices(tmp_path)) == 1
    one.discard(first)
    assert one.release_unused_lowers() == []
    assert squashfs_mounts(tmp_path) == [kernel_box.lowers / archive[1]]
    assert (second.merged / "first").read_text() == "linked"
    other.discard(second)
    assert squashfs_mounts(tmp_path) == []
    assert wait_until(lambda: not loop_devices(tmp_path))


def test_a_lower_of_a_killed_actor_is_released_by_another(kernel_box: Box, archive: Archive, tmp_path: Path) -> None:
    layer_id = crash(kernel_box, archive)
    assert kernel_box.layers.release_unused_lowers() == [kernel_box.lowers / archive[1]]
    assert squashfs_mounts(tmp_path) == []
    merged = kernel_box.root / layer_id / "merged"
    assert (merged / "first").read_text() == "linked", "the overlay keeps its lower file system alive"
    layer = kernel_box.layers.open(layer_id, *archive)
    kernel_box.layers.discard(layer)


@pytest.fixture
def twin(archive: Archive, tmp_path: Path) -> Archive:
    """Another file with the same bytes, like a second backup of an unchanged directory."""
    return Path(shutil.copy(archive[0], tmp_path / "twin.sqsh")), archive[1]


@pytest.mark.parametrize("closed_first", ["the older", "the younger"])
def test_layers_over_two_files_of_the_same_bytes_close_in_any_order(
    kernel_box: Box, archive: Archive, twin: Archive, tmp_path: Path, closed_first: str
) -> None:
    one, other = kernel_box.layers, kernel_box.another()
    opened = [(one, one.create(*archive)), (other, other.create(*twin))]
    assert len(squashfs_mounts(tmp_path)) == 2
    assert wait_until(lambda: len(loop_devices(tmp_path)) == 2)
    for layers, layer in opened if closed_first == "the older" else reversed(opened):
        (layer.merged / "written").write_text("kept")
        layers.close(layer)
    assert squashfs_mounts(tmp_path) == []
    for layers, layer in opened:
        again = layers.open(layer.id, layer.archive, layer.sha256)
        assert (again.merged / "first").read_text() == "linked"
        assert (again.merged / "written").read_text() == "kept"
    for layers, layer in opened:
        layers.discard(layer)
    assert squashfs_mounts(tmp_path) == []
    assert not list(kernel_box.lowers.glob("[0-9a-f]*"))


def test_layers_over_one_file_share_its_mount_and_its_twin_has_its_own(
    kernel_box: Box, archive: Archive, twin: Archive, tmp_path: Path
) -> None:
    users = [kernel_box.another() for _ in range(4)]
    first, second = users[0].create(*archive), users[1].create(*twin)
    users[0].discard(first)
    third, fourth = users[2].create(*archive), users[3].create(*twin)
    assert len(squashfs_mounts(tmp_path)) == 2
    assert wait_until(lambda: len(loop_devices(tmp_path)) == 2)
    for layers, layer in zip(users[1:], (second, third, fourth), strict=True):
        assert (layer.merged / "first").read_text() == "linked"
        layers.discard(layer)
    assert squashfs_mounts(tmp_path) == []


def test_a_foreign_mount_is_not_mistaken_for_the_archives(kernel_box: Box, archive: Archive, tmp_path: Path) -> None:
    strange = kernel_box.lowers / archive[1]
    strange.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(strange)], check=True)
    with occupy(strange):
        layer = kernel_box.layers.create(*archive)
        assert (layer.merged / "first").read_text() == "linked"
        kernel_box.layers.discard(layer)
    assert wait_until(lambda: kernel_box.layers.release_unused_lowers() == [strange])


RACE = "tests.support.programs.layers_in_a_row"


@pytest.mark.parametrize("files", ["one file", "two of the same bytes"])
def test_racing_processes_never_lose_the_shared_lower(
    kernel_box: Box, archive: Archive, twin: Archive, tmp_path: Path, files: str
) -> None:
    sha256, paths = archive[1], (archive[0], twin[0] if files == "two of the same bytes" else archive[0])
    racers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", RACE, str(tmp_path / f"box{number}"), str(kernel_box.lowers)),
                *(str(paths[number % 2]), sha256),
            ]
        )
        for number in range(4)
    ]
    assert [racer.wait(timeout=200) for racer in racers] == [0, 0, 0, 0]
    assert squashfs_mounts(tmp_path) == []
