"""Sandboxes' control groups lie below the service's group, whatever group or namespace it starts in.

The tests use real groups of the kernel. The only domain controller that cgroup v2 has on a machine with the others in
v1 hierarchies stands for memory: the kernel's rules about it are the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors.config import NodeConfig
from actors.node import actor_group, former_groups
from actors.node.cgroup import Cgroup, Limits
from actors.node.hierarchies import PROCS, SERVICE_LEAF, Hierarchies
from actors.node_layout import NodeLayout
from actors.service.node_sweeper import NodeSweeper
from tests.support.control_groups import is_removed, pids_in
from tests.support.mount_leaks import wait_until
from tests.support.service import PROJECT

ROOT = Hierarchies.find().roots[0]
DOMAIN = next(name for name in ("memory", "hugetlb") if name in (ROOT / "cgroup.controllers").read_text())


@pytest.fixture
def parent() -> Iterator[Path]:
    """An empty group of cgroup v2 with a domain controller, and groups of the same name in the v1 hierarchies."""
    found = Hierarchies.find()
    name = f"hf-test-{uuid.uuid4().hex[:12]}"
    (ROOT / "cgroup.subtree_control").write_text(f"+{DOMAIN}")
    for base in (found.v2, *found.v1.values()):
        (base / name).mkdir()
    yield found.v2 / name
    for base in (found.v2, *found.v1.values()):
        for folder, _, _ in os.walk(base / name, topdown=False):
            assert wait_until(lambda folder=folder: is_removed(Path(folder)))  # type: ignore[misc]


def started_in(group: Path, *argv: str) -> subprocess.Popen[str]:
    """Starts a process in a group of v2, and in the v1 groups of its name."""
    found = Hierarchies.find()
    groups = [group, *(base / group.name for base in found.v1.values())]
    enter = "".join(f"echo 0 > {folder / PROCS} && " for folder in groups)
    return subprocess.Popen(
        ["sh", "-c", f'{enter}exec "$@"', "sh", *argv],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)},
    )


def said(group: Path, program: str, *before: str) -> str:
    """Runs a program of `tests.support.programs` in a group; returns its output."""
    with started_in(group, *before, sys.executable, "-m", f"tests.support.programs.{program}", DOMAIN) as child:
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        return out


def namespaced(*, remounted: bool) -> tuple[str, ...]:
    """The argv prefix that gives a program its own cgroup namespace, with or without its own cgroup mount."""
    mount = f"umount {ROOT}; mount -t cgroup2 none {ROOT}; " if remounted else ""
    return ("unshare", "--cgroup", "--mount", "sh", "-c", f'{mount}exec "$@"', "sh")


def test_the_service_moves_into_its_leaf_while_its_processes_fork(parent: Path) -> None:
    assert said(parent, "service_leaf_under_forks").splitlines() == ["None", "[] True", "True True"]


def test_a_service_that_shares_its_group_moves_nothing_and_names_the_others(parent: Path) -> None:
    with started_in(parent, "sleep", "1000") as stranger:
        try:
            assert wait_until(lambda: str(stranger.pid) in (parent / PROCS).read_text().split())
            obstacle, where = said(parent, "service_leaf").splitlines()
            assert "sleep" in obstacle
            assert where.startswith("False")
            assert (parent / PROCS).read_text().split() == [str(stranger.pid)]
            assert not (parent / SERVICE_LEAF).exists()
        finally:
            stranger.kill()


@pytest.mark.parametrize("remounted", [True, False])
def test_all_processes_in_a_containers_namespace_move_with_the_service(parent: Path, remounted: bool) -> None:
    *unshare, shell, option, script, name = namespaced(remounted=remounted)
    company = script.replace("exec", "setsid sleep 1000 > /dev/null & exec")
    out = said(parent, "service_leaf", *unshare, shell, option, company, name).splitlines()
    try:
        assert out[0] == "None"
        assert out[1].startswith("True []")
        assert len((parent / SERVICE_LEAF / PROCS).read_text().split()) == 1  # the other process, which lives on
    finally:
        (parent / "cgroup.kill").write_text("1")


@pytest.mark.parametrize("before", [(), namespaced(remounted=True), namespaced(remounted=False)], ids=str)
def test_a_sandboxs_group_and_its_limits_are_below_the_services_own(parent: Path, before: tuple[str, ...]) -> None:
    groups, limits = said(parent, "sandbox_group", *before).rsplit("\n\n", 1)
    own = {line.split(":")[1]: line.split(":", 2)[2] for line in groups.splitlines()}
    above = "" if before else f"/{parent.name}"
    assert own[""] == f"{above}/holdfast-x/one"
    assert own["pids"].endswith("/holdfast-x/one")
    assert limits.strip() == repr(Limits(memory_bytes=2**28, processes=20))
    for base in (Hierarchies.find().v2, *Hierarchies.find().v1.values()):
        assert not list((base / parent.name).glob("holdfast-x"))


def test_leftovers_of_our_earlier_run_are_ended_and_other_services_are_not(parent: Path, tmp_path: Path) -> None:
    layout = NodeLayout(NodeConfig(data_dir=tmp_path))
    earlier, other = parent / layout.cgroup / "one", parent / "holdfast-another" / "one"
    for group in (earlier, other):
        group.mkdir(parents=True)
    with started_in(parent, "sleep", "1000") as old, started_in(parent, "sleep", "1000") as foreign:
        try:
            arrived = parent / PROCS  # they must arrive first: a late arrival would undo the move
            assert wait_until(lambda: {str(old.pid), str(foreign.pid)} <= set(arrived.read_text().split()))
            (earlier / PROCS).write_text(str(old.pid))
            (other / PROCS).write_text(str(foreign.pid))
            (earlier / "cgroup.freeze").write_text("1")
            NodeSweeper(NodeConfig(data_dir=tmp_path), None).sweep()
            assert old.wait(60) == -9
            assert not earlier.parent.exists()
            assert foreign.poll() is None
        finally:
            old.kill()
            foreign.kill()


@pytest.fixture
def former(tmp_path: Path) -> Iterator[Path]:
    """The group that an earlier release's layout had for a data folder."""
    name = f"holdfast-{hashlib.sha256(str(tmp_path / 'data').encode()).hexdigest()[:12]}"
    (tmp_path / "data").mkdir()
    group = ROOT / name
    (group / "one").mkdir(parents=True)
    yield group
    Cgroup.remove_tree(name)


def test_all_sandboxes_together_leave_the_node_some_processes() -> None:
    node = f"holdfast-test-{uuid.uuid4().hex[:8]}"
    found = Hierarchies.find()
    try:
        Cgroup(f"{node}/one", memory_bytes=2**30, processes=100).prepare()
        limits = [limit for base in (found.v2, *found.v1.values()) if (limit := base / node / "pids.max").exists()]
        assert limits or "pids" not in {*found.v1, *(found.v2 / "cgroup.controllers").read_text().split()}
        for limit in limits:
            assert 0 < int(limit.read_text()) < int(Path("/proc/sys/kernel/pid_max").read_text())
    finally:
        Cgroup.remove_tree(node)


def processor_ticks(group: str) -> int:
    """Processor time, in ticks, of the processes in a group."""
    return sum(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]) for pid in pids_in(group))


@pytest.mark.skipif("cpu" not in {*Hierarchies.find().v1, *(ROOT / "cgroup.controllers").read_text().split()},
                    reason="no group here has a controller for processors")  # fmt: skip
def test_a_sandbox_of_many_busy_processes_leaves_another_an_equal_share_of_the_cpu() -> None:
    node = f"holdfast-test-{uuid.uuid4().hex[:8]}"
    many, one = f"{node}/many", f"{node}/one"
    busy = ["taskset", "--cpu-list", "0", "sh", "-c", "while :; do :; done"]
    started = []
    try:
        for name, count in ((many, 40), (one, 1)):
            group = Cgroup(name, memory_bytes=2**30, processes=100)
            group.prepare()
            started += [subprocess.Popen(group.entry(busy), start_new_session=True) for _ in range(count)]
        assert wait_until(lambda: (len(pids_in(many)), len(pids_in(one))) == (40, 1))
        before = processor_ticks(many), processor_ticks(one)
        assert wait_until(lambda: processor_ticks(one) - before[1] >= 50, timeout_s=120)
        assert processor_ticks(many) - before[0] <= 10 * (processor_ticks(one) - before[1])
    finally:
        Cgroup.remove_tree(node)
        for process in started:
            process.wait()


def in_group(group: Path, script: str = "exec sleep 1000") -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    (group / PROCS).write_text(str(process.pid))
    return process


def test_a_group_of_the_earlier_layout_is_ended_and_removed(former: Path, tmp_path: Path) -> None:
    with in_group(former / "one") as stray:
        former_groups.remove(tmp_path / "data")
        assert stray.wait(60) == -9
    assert not former.exists()


def test_a_group_of_the_earlier_layout_is_left_alone_while_another_service_uses_it(
    former: Path, tmp_path: Path
) -> None:
    # The other service sees another folder at this path: it has its own mount namespace.
    (tmp_path / "other").mkdir()
    hold = "exec 9> data/lock; echo ready; exec sleep 1000"
    argv = ["unshare", "--mount", "sh", "-c", f"mount --bind other data; cd .; {hold}"]
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True) as service:
        assert service.stdout is not None and service.stdout.readline() == b"ready\n"
        with in_group(former / "one") as command:
            try:
                former_groups.remove(tmp_path / "data")
                assert command.poll() is None
                assert former.exists()
            finally:
                command.kill()
                service.kill()


def test_a_process_that_ends_while_open_files_are_listed_keeps_no_group_of_the_earlier_layout(
    former: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = subprocess.Popen(["sleep", "1000"])

    def before(list_: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def listed(path: Any) -> Any:
            if os.fspath(path) == f"/proc/{ending.pid}/fd":
                ending.kill()
                ending.wait()
            return list_(path)

        return listed

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, before(getattr(os, name)))
    former_groups.remove(tmp_path / "data")
    assert ending.returncode == -9
    assert not former.exists()


def test_the_doctor_says_which_limits_are_not_in_force_and_why(parent: Path) -> None:
    ok = said(parent, "cgroup_findings")
    assert "('limits', True, False, 'memory and processes of commands are limited')" in ok
    hidden = "".join(f"umount {path}; " for path in {str(p) for p in Hierarchies.find().roots[1:]})
    out = said(parent, "cgroup_findings", "unshare", "--mount", "sh", "-c", f'{hidden}exec "$@"', "sh")
    assert "('limits', False, False, 'not all in force: this control group has no controller for memory and proc" in out


def test_groups_of_dead_actors_are_removed_by_many_at_once(parent: Path) -> None:
    no_process = range(2**22, 2**22 + 30)  # above the kernel's greatest pid
    node_group = f"{parent.name}/node"
    for _ in range(20):
        groups = [parent / "node" / f"actor-{pid}-1" for pid in no_process]
        for group in groups:
            group.mkdir(parents=True)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(actor_group.end_orphans, [node_group] * 4)) == [0] * 4
        assert not [group for group in groups if group.exists()]


def test_an_actor_whose_lock_is_gone_counts_as_dead_before_it_has_ended(parent: Path, tmp_path: Path) -> None:
    node_group, lock = f"{parent.name}/node", tmp_path / "lock"
    argv = [sys.executable, "-m", "tests.support.programs.ending_slowly", node_group, str(lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT) as actor:
        assert actor.stdout is not None and actor.stdout.readline() == b"ready\n"
        (group,) = (parent / "node").glob("actor-*")
        with in_group(group) as orphan:
            assert actor_group.end_orphans(node_group) == 0
            with lock.open("a") as successors:
                actor.kill()
                fcntl.lockf(successors, fcntl.LOCK_EX)
                actor_group.end_orphans(node_group)
            ended = wait_until(lambda: orphan.poll() is not None, timeout_s=10)
            orphan.kill()
            assert ended
    assert not group.exists()


@pytest.mark.parametrize("given", ["sandbox-node-1", "rack 4/node 1", "../../elsewhere"])
def test_a_node_with_an_operators_name_has_a_single_group(tmp_path: Path, given: str) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "id").write_text(given)
    layout = NodeLayout(NodeConfig(data_dir=tmp_path))
    assert layout.identity() == given
    assert Path(layout.cgroup).parts == (layout.cgroup,)
    group = Cgroup(layout.sandbox_cgroup("default", "box"), memory_bytes=2**28, processes=20)
    group.prepare()
    assert (Hierarchies.find().v2 / layout.cgroup).is_dir()
    Cgroup.remove_tree(layout.cgroup)
    assert not (Hierarchies.find().v2 / layout.cgroup).exists()
