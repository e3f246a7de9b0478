"""The node sweeper removes what no living sandbox owns; sleeping sandboxes keep their files, awake ones everything."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import actors.service.node_sweeper
from actors.config import NodeConfig
from actors.models import DirectoryBackup
from actors.node import mountinfo
from actors.node.drivers import Driver
from actors.node.hierarchies import Hierarchies
from actors.node.work_folder import remove_unless_in_use, working_in
from actors.sandbox.facade import LocalSandbox
from actors.service.node_sweeper import OUT_OF_DATE_S, SWEEP_S, NodeSweeper, Swept
from storage.config import BucketConfig
from storage.s3 import S3ObjectStore
from tests.support.control_groups import pids_in
from tests.support.full_disk import unmounted
from tests.support.held_store import AwayStore
from tests.support.mount_leaks import wait_until
from tests.support.s3 import FAST
from tests.support.sandboxes import Background, Node, backup, crash, described, read, restore, sh
from tests.support.trees import Entry, fingerprint

ROOT = str(Path(__file__).parents[2])
KILLED = "tests.support.programs.killed_awake"
AWAKE = "tests.support.programs.awake_until_told"
PRODUCING = "tests.support.programs.producing"


def sweeper_of(node: Node) -> NodeSweeper:
    return NodeSweeper(node.config.node, node.catalog())


def pids_of(node: Node, name: str = "box") -> list[int]:
    return pids_in(node.layout.sandbox_cgroup("default", name))


def has_group(node: Node, name: str = "box") -> bool:
    return (Hierarchies.find().v2 / node.layout.sandbox_cgroup("default", name)).exists()


def kill_awake(node: Node, name: str = "box", moment: str = "in mid-restore") -> None:
    """Kills an actor's process while its sandbox is awake; its mounts and processes are left."""
    ended = crash(KILLED, described(node), name, moment)
    assert ended.status == -signal.SIGKILL and "survived" not in ended.stdout, ended
    assert mountinfo.mounts_under(node.home(name))
    assert pids_of(node, name)


@contextmanager
def waiting(program: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in its own process that has reported ready, and waits for a line of input."""
    argv = [sys.executable, "-m", program, *args]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert "ready\n" in iter(process.stdout.readline, "")
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> list[str]:
    """Lets the program go on to its end, which must succeed; returns the lines that it prints."""
    out, _ = process.communicate("\n", timeout=200)
    assert process.returncode == 0
    return out.splitlines()


def files(home: Path) -> dict[str, dict[bytes, Entry] | bytes]:
    """Returns an unmounted sandbox's content: its record, the writes over each layer, and the archives below them."""
    found: dict[str, dict[bytes, Entry] | bytes] = {"record": (home / "sandbox.json").read_bytes()}
    for layer in (home / "layers").iterdir():
        found[f"{layer.name}/upper"] = fingerprint(layer / "upper")
        found[f"{layer.name}/record"] = (layer / "layer.json").read_bytes()
    found["archives"] = fingerprint(home / "archives")
    return found


# --- killed actors


@pytest.mark.parametrize("moment", ["awake", "in mid-restore"])
def test_everything_of_a_killed_actor_is_removed_except_its_files(node: Node, moment: str) -> None:
    kill_awake(node, moment=moment)
    home, spool = node.home("box"), node.home("box") / "spool"
    shared = len(list(node.layout.lowers.glob("[0-9a-f]*")))
    assert shared == (node.driver is Driver.KERNEL)
    assert bool(list(spool.glob("*"))) == (moment == "in mid-restore")
    mounts, spools, before = len(mountinfo.mounts_under(home)), int(spool.exists()), files(home)
    assert len(before) == 4

    swept = sweeper_of(node).sweep()

    assert swept == Swept(mounts=mounts, spools=spools, lowers=shared)
    assert mountinfo.mounts_under(node.data_dir) == []
    assert not has_group(node)
    assert wait_until(lambda: node.processes() == {}), node.processes()
    assert not spool.exists()
    assert list(node.layout.lowers.glob("[0-9a-f]*")) == []
    assert files(home) == before
    assert sweeper_of(node).sweep() == Swept()
    box = node.sandbox()
    assert sh(box, "cd data; grep . *") == "added:later\nchanged:later\nkept:original\n"
    assert read(box, "/app/written") == b"acknowledged"
    assert [row.dir for row in box.info().restored] == ["/workspace/data"]


def test_a_mount_in_use_is_named_and_does_not_block_the_rest_of_the_sweep(
    kernel_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_awake(kernel_node, "first")
    kill_awake(kernel_node, "second")
    monkeypatch.setattr(actors.service.node_sweeper, "_UNMOUNT_S", 0.1)
    with (kernel_node.home("first") / "root/workspace/data/kept").open():
        swept = sweeper_of(kernel_node).sweep()
        assert swept.stuck == ["first"]
        assert mountinfo.mounts_under(kernel_node.home("first"))
        assert mountinfo.mounts_under(kernel_node.home("second")) == []
        assert not has_group(kernel_node, "first")
        assert not (kernel_node.home("second") / "spool").exists()
    assert sweeper_of(kernel_node).sweep().stuck == []
    assert mountinfo.mounts_under(kernel_node.data_dir) == []


# --- awake sandboxes


def test_nothing_of_an_awake_sandbox_is_touched(node: Node) -> None:
    with waiting(AWAKE, described(node)) as actor:
        home = node.home("box")
        (home / "spool").mkdir(exist_ok=True)
        (home / "spool" / "half").write_text("half")
        mounts, pids = mountinfo.mounts_under(node.data_dir), pids_of(node)
        assert mounts and pids
        assert sweeper_of(node).sweep() == Swept()
        assert mountinfo.mounts_under(node.data_dir) == mounts
        assert pids_of(node) == pids
        assert (home / "spool" / "half").read_text() == "half"
        assert "['original', 'later'] False" in go_on(actor)
    assert sh(node.sandbox(), "cat data/file") == "original\nlater\n"


def test_the_sweeper_of_a_draining_node_leaves_its_sandboxes_alone(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    box.close()
    (kernel_node.home("box") / "spool").mkdir(exist_ok=True)
    sweeper = sweeper_of(kernel_node)
    sweeper.rest()
    assert sweeper.sweep() == Swept()
    sweeper.resume()
    assert sweeper.sweep() == Swept(spools=1)


# --- sandboxes that have moved to another node


class Moved:
    """A sandbox that another node has recovered while its first node was away; now the first node is back."""

    def __init__(self, node: Node, other: Node) -> None:
        self.node, self.other = node, other
        self.home = node.home("box")
        self.mark = self.home / "out-of-date"
        box = node.sandbox()
        sh(box, "mkdir data; echo saved > data/file")
        restore(box, backup(box, "/workspace/data"))
        backup(box)
        sh(box, "echo unsaved > data/unsaved")
        box.close()
        sweeper_of(node).sweep()
        assert not self.mark.exists()
        self.files = files(self.home)
        self.elsewhere = other.sandbox(lost=["node"])

    def age(self, seconds: float) -> None:
        """Sets the age of the mark."""
        at = time.time() - seconds
        os.utime(self.mark, (at, at))

    def check_kept(self) -> None:
        assert files(self.home) == self.files


@pytest.fixture
def moved(kernel_node: Node, scratch: Path, bucket: BucketConfig) -> Iterator[Moved]:
    with Node(scratch / "other", bucket, kernel_node.driver, identity="other") as other:
        yield Moved(kernel_node, other)


@pytest.mark.parametrize("asleep", [False, True])
def test_outdated_files_are_deleted_a_day_after_they_were_found(moved: Moved, *, asleep: bool) -> None:
    if asleep:
        moved.elsewhere.sleep(moved.elsewhere.back_up_for_sleep())
    sweeper = sweeper_of(moved.node)
    assert sweeper.sweep() == Swept()
    assert moved.mark.exists()
    moved.check_kept()
    for age_s in (0.0, OUT_OF_DATE_S - 3600):
        moved.age(age_s)
        marked_at = moved.mark.stat().st_mtime_ns
        assert sweeper.sweep() == Swept()
        assert moved.mark.stat().st_mtime_ns == marked_at
        moved.check_kept()
    moved.age(OUT_OF_DATE_S + 1)
    assert sweeper.sweep() == Swept(out_of_date=1)
    assert not moved.home.exists()
    assert not moved.node.layout.sandbox_lock("default", "box").exists()
    assert list(moved.node.layout.trash.glob("*")) == []
    assert sh(moved.elsewhere, "cat data/file") == "saved\n"


def test_files_of_a_sandbox_without_a_state_are_kept_and_unmarked(moved: Moved) -> None:
    sweeper_of(moved.node).sweep()
    moved.age(OUT_OF_DATE_S + 1)
    moved.elsewhere.destroy()
    assert sweeper_of(moved.node).sweep() == Swept()
    assert not moved.mark.exists()
    moved.check_kept()
    assert sh(moved.node.sandbox(), "cat data/unsaved") == "unsaved\n"


def test_files_that_this_node_put_to_sleep_are_kept_and_unmarked(moved: Moved) -> None:
    """An actor that dies between putting the sandbox to sleep and removing its files leaves this state."""
    sweeper_of(moved.node).sweep()
    moved.age(OUT_OF_DATE_S + 1)
    catalog = moved.node.catalog()
    moved.elsewhere.close()
    found = catalog.sandboxes.find_state("default", "box")
    assert found is not None
    asleep = found.state.model_copy(update={"node": None, "slept_on": moved.node.layout.identity()})
    catalog.sandboxes.write_state(asleep, replacing=found.etag)
    assert sweeper_of(moved.node).sweep() == Swept()
    assert not moved.mark.exists()
    moved.check_kept()


def test_files_of_a_sandbox_that_moved_back_to_this_node_are_kept(moved: Moved) -> None:
    sweeper_of(moved.node).sweep()
    moved.age(OUT_OF_DATE_S + 1)
    moved.elsewhere.close()
    back = moved.node.sandbox(lost=["other"])
    sh(back, "echo new > new")
    back.close()
    assert sweeper_of(moved.node).sweep().out_of_date == 0
    assert not moved.mark.exists()
    assert sh(moved.node.sandbox(), "cat data/file new") == "saved\nnew\n"


def test_without_the_bucket_no_file_is_marked_outdated_and_no_mark_is_lost(moved: Moved) -> None:
    store = AwayStore(S3ObjectStore(moved.node.bucket, transfer=FAST))
    sweeper = NodeSweeper(moved.node.config.node, moved.node.catalog(store))
    store.is_away = True
    assert sweeper.sweep() == Swept()
    assert not moved.mark.exists()
    store.is_away = False
    sweeper.sweep()
    moved.age(OUT_OF_DATE_S + 1)
    store.is_away = True
    for sweeping in (sweeper, NodeSweeper(moved.node.config.node, None)):
        assert sweeping.sweep() == Swept()
        assert moved.mark.exists()
        moved.check_kept()
    store.is_away = False
    assert sweeper.sweep() == Swept(out_of_date=1)


def test_a_sandbox_that_is_removed_while_the_bucket_is_asked_for_it_is_not_stuck(moved: Moved) -> None:
    class Asked:
        def find_state(self, tenant: str, sandbox: str) -> object:
            found = moved.node.catalog().sandboxes.find_state(tenant, sandbox)
            moved.node.layout.remove(moved.home)  # by its actor, which hands it over
            return found

    sweeper = NodeSweeper(moved.node.config.node, SimpleNamespace(sandboxes=Asked()))  # type: ignore[arg-type]
    assert sweeper.sweep() == Swept()
    assert not moved.node.layout.sandbox_lock("default", "box").exists()


# --- files that a node's sandboxes share


def test_half_made_archives_are_deleted_unless_their_maker_still_runs(kernel_node: Node) -> None:
    cache = kernel_node.layout.cache
    for backup_id in ("left", "made"):
        (cache / f".{backup_id}.work").mkdir(parents=True)
        (cache / f".{backup_id}.work" / "part").write_text("part")
    with waiting(PRODUCING, str(cache), "made", str(kernel_node.data_dir / "link")) as producer:
        sweeper_of(kernel_node).sweep()
        assert [path.name for path in cache.glob(".*.work")] == [".made.work"]
        assert "produced" in go_on(producer)
    assert sweeper_of(kernel_node).has_archive("made")


def test_what_a_dead_adoption_or_flattening_has_left_is_deleted_and_one_that_runs_goes_on(kernel_node: Node) -> None:
    layout = kernel_node.layout
    layout.adoptions.mkdir()
    (layout.adoptions / "fetched.sqsh").write_text("left")
    with working_in(layout.flattenings) as work:
        (work / "layer0.sqsh").write_text("in work")
        assert sweeper_of(kernel_node).sweep() == Swept(works=1)
        assert not layout.adoptions.exists()
        assert (work / "layer0.sqsh").read_text() == "in work"
    assert not layout.flattenings.exists()
    assert sweeper_of(kernel_node).sweep() == Swept()


def test_no_sweep_removes_the_work_that_begins_where_a_dead_process_has_left_some(tmp_path: Path) -> None:
    folder, over = tmp_path / "work", threading.Event()
    swept = [0, 0]

    def sweep(own: int) -> None:
        while not over.is_set():
            remove_unless_in_use(folder)
            swept[own] += 1

    def wait_for_two_of_each() -> None:
        before = list(swept)
        assert wait_until(lambda: all(now >= then + 2 for now, then in zip(swept, before, strict=True)))

    with ThreadPoolExecutor(len(swept)) as pool:
        sweeps = [pool.submit(sweep, own) for own in range(len(swept))]
        try:
            for _ in range(60):
                folder.mkdir(exist_ok=True)  # a dead process's
                with working_in(folder) as work:
                    (work / "part").touch()
                    wait_for_two_of_each()
                    assert (work / "part").exists()
        finally:
            over.set()
        assert [each.result() for each in sweeps] == [None, None]


def test_a_half_made_archive_that_cannot_be_removed_does_not_block_the_sweep(kernel_node: Node) -> None:
    cache = kernel_node.layout.cache
    stuck = cache / ".stuck.work" / "mount"
    stuck.mkdir(parents=True)
    (cache / f"whole_{'0' * 64}.sqsh").write_bytes(bytes(100))
    subprocess.run(["mount", "-t", "tmpfs", "none", str(stuck)], check=True)
    try:
        NodeSweeper(kernel_node.config.node.model_copy(update={"cache_max_bytes": 50}), None).sweep()
        assert list(cache.glob("*.sqsh")) == []
    finally:
        unmounted(stuck)
    sweeper_of(kernel_node).sweep()
    assert list(cache.glob(".*.work")) == []


def test_trash_is_deleted_after_ten_minutes(kernel_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    trash = kernel_node.layout.trash
    old, young = trash / "old", trash / "young"
    for doomed in (old, young):
        (doomed / "root").mkdir(parents=True)
        (doomed / "root" / "file").write_text("doomed")
    assert sweeper_of(kernel_node).sweep() == Swept()

    def is_younger() -> bool:
        young.chmod(0o700)
        return young.stat().st_ctime > old.stat().st_ctime

    assert wait_until(is_younger)
    between = (old.stat().st_ctime + young.stat().st_ctime) / 2
    monkeypatch.setattr(actors.service.node_sweeper, "time", SimpleNamespace(time=lambda: between + 600))
    assert sweeper_of(kernel_node).sweep() == Swept(trash=1)
    assert list(trash.iterdir()) == [young]


def test_the_least_recently_used_archives_are_evicted_and_layers_keep_theirs(kernel_node: Node) -> None:
    def archive(handle: DirectoryBackup) -> Path:
        (path,) = kernel_node.layout.cache.glob(f"{handle.id}_*.sqsh")
        return path

    def kept(max_bytes: int) -> list[bool]:
        sweeper = NodeSweeper(kernel_node.config.node.model_copy(update={"cache_max_bytes": max_bytes}), None)
        assert sweeper.sweep().stuck == []
        return [sweeper.has_archive(handle.id) for handle in made]

    box: LocalSandbox = kernel_node.sandbox()
    made = []
    for number in range(3):
        sh(box, f"mkdir {number}; echo {number} > {number}/number; head -c 50000 /dev/urandom > {number}/noise")
        made.append(backup(box, f"/workspace/{number}"))
        restore(box, made[-1])
    noise = sh(box, "sha256sum ?/noise")
    box.close()
    sizes = [archive(handle).stat().st_size for handle in made]
    for handle, used_at in zip(made, (2000, 1000, 3000), strict=True):
        os.utime(archive(handle), (used_at, used_at))
    assert kept(sum(sizes)) == [True, True, True]
    assert kept(sum(sizes) - 1) == [True, False, True]
    assert kept(sizes[2]) == [False, False, True]
    assert kept(1) == [False, False, False]
    assert sh(kernel_node.sandbox(), "sha256sum ?/noise") == noise


# --- questions to a node


def test_a_node_knows_which_archives_it_has(kernel_node: Node) -> None:
    box, sweeper = kernel_node.sandbox(), sweeper_of(kernel_node)
    sh(box, "echo 1 > file")
    handle = backup(box)
    assert sweeper.has_archive(handle.id)
    assert not sweeper.has_archive("0" * 36)
    for archive in kernel_node.layout.cache.glob("*.sqsh"):
        archive.unlink()
    assert not sweeper.has_archive(handle.id)
    restore(box, handle)
    assert sweeper.has_archive(handle.id)


def test_a_new_node_has_nothing_to_sweep_and_one_identity_for_concurrent_callers(tmp_path: Path) -> None:
    nodes = [NodeConfig(data_dir=tmp_path / name) for name in ("a", "b")]
    assert NodeSweeper(nodes[0], None).sweep() == Swept()
    assert not NodeSweeper(nodes[0], None).has_archive("0" * 36)
    at_once = threading.Barrier(8)

    def ask() -> str:
        at_once.wait(60)
        return NodeSweeper(nodes[0], None).identity()

    asking = [Background(ask) for _ in range(8)]
    (identity,) = {asked.result() for asked in asking}
    assert re.fullmatch("[0-9a-f]{32}", identity)
    assert NodeSweeper(nodes[0], None).identity() == identity
    assert NodeSweeper(nodes[1], None).identity() != identity
    assert sorted(path.name for path in (tmp_path / "a" / "node").iterdir()) == ["id", "trash"]


@pytest.mark.parametrize(("took_s", "pause_s"), [(1.0, SWEEP_S), (100.0, 1000.0)])
def test_a_long_sweep_of_many_sandboxes_is_followed_by_a_longer_pause(
    kernel_node: Node, took_s: float, pause_s: float
) -> None:
    times = iter([5.0, 5.0 + took_s])
    assert NodeSweeper(kernel_node.config.node, None, clock=lambda: next(times)).step() == pause_s
