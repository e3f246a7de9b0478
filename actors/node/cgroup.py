"""The control group of one sandbox's commands: stopped, paused, resumed and limited as one.

It lies below the group that the service was started in (`Hierarchies`). Pausing and killing are cgroup v2's. Limits on
memory and processes, and an equal share of the processors, use v2's controllers where they can be had, and the v1
hierarchies where a node (or its container) still keeps the controllers there.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from actors.node import delegation, process
from actors.node.errors import CgroupError
from actors.node.hierarchies import PROCS, SERVICE_LEAF, Hierarchies, own_procs
from actors.node.memory import Rank, share_of_sandboxes, share_of_socket_buffers

JOIN = (
    f"{{ echo {int(Rank.COMMAND)} > /proc/self/oom_score_adj; }} 2> /dev/null; "
    'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"'
)
"""A shell's whole program: enters each group that is named before `--`, then becomes what is named after it."""

_THAW_WHEN_ORPHANED = 'read -r _ || echo 0 > "$1"'
"""The guard's program. It is dismissed by a line, because a thaw that comes late would hit the next pause."""
_NOBODYS_CHILD = ("unshare", "--pid", "--fork", "--")
"""Keeps the guard from being a child of the actor, which Ray kills all of; and has it reaped, unlike a daemon."""
_V1_LIMIT = {"memory": "memory.limit_in_bytes", "pids": "pids.max"}
_V2_LIMIT = {"memory": "memory.max", "pids": "pids.max"}
_V1_WEIGHT, _V2_WEIGHT = ("cpu.shares", 1024, 2**18), ("cpu.weight", 100, 10_000)
"""The file of a group's weight; the weight that a group, or a process beside it, has by itself; and the largest."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that are in force on all processes of a group together; None where there is none.

    `obstacle` says, in a sentence for the operator, what keeps a limit from being in force.
    """

    memory_bytes: int | None
    processes: int | None
    obstacle: str | None = None


class Cgroup:
    """One group of processes. Made on the first use, removed by `remove`."""

    def __init__(self, name: str, *, memory_bytes: int, processes: int, hierarchies: Hierarchies | None = None) -> None:
        """`name` is a path below the service's own group, of at most two parts: the node's group and the sandbox's."""
        found = hierarchies or Hierarchies.find()
        self._name = name
        self._base = found.v2
        self._path = found.v2 / name
        self._v1 = {controller: where / name for controller, where in found.v1.items()}
        self._limits = {"memory": memory_bytes, "pids": processes}
        self._obstacle: str | None = None

    def prepare(self) -> None:
        """Makes the group and sets its limits. Repeatable."""
        self._path.mkdir(parents=True, exist_ok=True)
        self._obstacle = delegation.pass_on(delegation.Group(self._base), ["cpu", *self._limits])
        for controller in self._limits:
            if not self._limit_v2(controller):
                self._limit_v1(controller)
        self._limit_node()
        self._share_processors()

    def _pass_down(self, controller: str) -> None:
        """Gives the group a controller, if the service's group passes it on."""
        for parent in reversed(self._path.parents):
            if parent.is_relative_to(self._base) and parent != self._base:
                with contextlib.suppress(OSError):
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")

    def _limit_v2(self, controller: str) -> bool:
        """Sets a limit, if the service's group passes the controller on."""
        limit = self._path / _V2_LIMIT[controller]
        self._pass_down(controller)
        if not limit.exists():
            return False
        limit.write_text(str(self._limits[controller]))
        if controller == "memory":
            with contextlib.suppress(OSError):
                (self._path / "memory.swap.max").write_text("0")
        return True

    def _limit_v1(self, controller: str) -> None:
        path = self._v1.get(controller)
        if path is not None:
            with contextlib.suppress(OSError):
                path.mkdir(parents=True, exist_ok=True)
                (path / _V1_LIMIT[controller]).write_text(str(self._limits[controller]))
                if controller == "memory":  # v1 counts these apart, and limits them not at all
                    limit = min(self._limits[controller], share_of_socket_buffers())
                    (path / "memory.kmem.tcp.limit_in_bytes").write_text(str(limit))

    def _limit_node(self) -> None:
        """Limits the memory and the processes of the node's group, and so of all sandboxes together."""
        if self._path.parent == self._base:  # not the group of a sandbox
            return
        for group in (self._path, *self._v1.values()):
            with contextlib.suppress(OSError):
                if (limit := group.parent / _V2_LIMIT["pids"]).exists():
                    limit.write_text(str(_most_processes()))
        groups = {self._path: _V2_LIMIT["memory"]}
        if "memory" in self._v1:
            groups[self._v1["memory"]] = _V1_LIMIT["memory"]
        for group, name in groups.items():
            limit = group.parent / name
            if limit.exists():
                with contextlib.suppress(OSError):
                    limit.write_text(str(share_of_sandboxes(each.parents[1] for each in groups)))
                return

    def _share_processors(self) -> None:
        """Has the groups of the node take equal parts of the processors, however many processes each has.

        All together have the weight of one process for each processor, where the service's processes are beside them
        and not in a group of their own.
        """
        self._pass_down("cpu")
        group, (name, weight, most) = self._path, _V2_WEIGHT
        are_beside = not (self._base / SERVICE_LEAF).is_dir()
        if "cpu" in self._v1:
            group, (name, weight, most), are_beside = self._v1["cpu"], _V1_WEIGHT, True
        with contextlib.suppress(OSError):
            group.mkdir(parents=True, exist_ok=True)
            if are_beside and self._path.parent != self._base:
                (group.parent / name).write_text(str(min(weight * (os.cpu_count() or 1), most)))

    def limits(self) -> Limits:
        """The limits that are in force, by the kernel's own account."""
        memory, pids = self._in_force("memory"), self._in_force("pids")
        without = [name for name, limit in (("memory", memory), ("processes", pids)) if limit is None]
        obstacle = None
        if without:
            obstacle = self._obstacle or f"this control group has no controller for {' and '.join(without)}."
        return Limits(memory, pids, obstacle)

    def _in_force(self, controller: str) -> int | None:
        """The limit that is set, unless it is beyond the one that was asked for, and so another's or none."""
        files = [self._path / _V2_LIMIT[controller]]
        if controller in self._v1:
            files.append(self._v1[controller] / _V1_LIMIT[controller])
        for file in files:
            with contextlib.suppress(OSError, ValueError):
                limit = int(file.read_text())  # "max": no limit
                if limit <= self._limits[controller]:
                    return limit
        return None

    def entry(self, argv: list[str]) -> list[str]:
        """The argv that enters the group and then becomes `argv`.

        Raises:
            CgroupError: the group has been removed; nothing may run outside of it.
        """
        if not self._path.is_dir():
            raise CgroupError("the sandbox's control group is gone")
        groups = [path for path in (self._path, *self._v1.values()) if path.is_dir()]
        return ["/bin/sh", "-c", JOIN, "join", *(str(path / PROCS) for path in groups), "--", *argv]

    def pids(self) -> list[int]:
        """The processes in the group now."""
        try:
            return [int(pid) for pid in (self._path / PROCS).read_text().split()]
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def frozen(self, *, timeout_s: float = 10.0) -> Iterator[None]:
        """Pauses every process of the group within the block.

        A guard that outlives the actor resumes them should it die meanwhile.

        Raises:
            CgroupError: they could not be paused in time (one may hang in the kernel); all run on.
        """
        freeze = self._path / "cgroup.freeze"
        guard = process.start(
            [*_NOBODYS_CHILD, "/bin/sh", "-c", _THAW_WHEN_ORPHANED, "thaw", str(freeze)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert guard.stdin is not None
        try:
            freeze.write_text("1")
            self._wait_for("frozen 1", timeout_s, "could not be paused")
            yield
        finally:
            freeze.write_text("0")
            guard.communicate(b"dismissed\n")

    def kill(self, *, timeout_s: float = 10.0) -> None:
        """Kills every process of the group, paused ones too, and waits until none is left.

        Raises:
            CgroupError: one is still there after `timeout_s` (it hangs in the kernel).
        """
        kill = self._path / "cgroup.kill"
        if kill.exists():
            # Each time anew: a process may enter the group right after it was killed.
            self._wait_for("populated 0", timeout_s, "could not be ended", repeat=lambda: kill.write_text("1"))

    def thaw(self) -> None:
        """Resumes whatever an actor that died has left paused."""
        freeze = self._path / "cgroup.freeze"
        if freeze.exists():
            freeze.write_text("0")

    def remove(self, *, timeout_s: float = 10.0) -> None:
        """Kills what runs and removes the group. Repeatable."""
        self.kill(timeout_s=timeout_s)
        for path in (self._path, *self._v1.values()):
            try:
                path.rmdir()
            except FileNotFoundError:
                pass
            except OSError as e:
                if e.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise

    @classmethod
    def remove_tree(cls, name: str, *, but_ours: bool = False) -> None:
        """Kills what runs in the groups of a name and in those in them, and removes them all. Repeatable.

        They may lie anywhere: an earlier run of the service may have been started in another group than this one.

        Args:
            but_ours: leave those that lie where this run of the service makes them.
        """
        found = Hierarchies.find()
        ours = {where / name for where in (found.v2, *found.v1.values())} if but_ours else set()
        for top in found.named(name):
            if top not in ours:
                remove_groups(top)

    def _wait_for(
        self, line: str, timeout_s: float, failure: str, *, repeat: Callable[[], object] = lambda: None
    ) -> None:
        deadline = time.monotonic() + timeout_s
        with (self._path / "cgroup.events").open() as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while line not in events.read().splitlines():
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    raise CgroupError(f"the sandbox's processes {failure} within {timeout_s:g} s")
                repeat()
                poll.poll(min(remaining_s, 0.25) * 1000)
                events.seek(0)


def _most_processes() -> int:
    """Nine tenths of the processes and threads that the node can have. Source: proc_sys_kernel(5)."""
    return min(int(Path(f"/proc/sys/kernel/{name}").read_text()) for name in ("pid_max", "threads-max")) * 9 // 10


def announce_entry() -> None:
    """Has the kernel ready for a process that is about to enter a group: that takes it 1 ms then, and 8 ms otherwise.

    The first change of groups after a pause waits for a grace period of RCU, and those that follow at once do not. This
    is such a change, of this process into the group that it is in; so nothing changes. Blocks as long as it takes.

    Source: cgroup_attach_lock in kernel/cgroup/cgroup.c and kernel/rcu/sync.c; measured on Linux 6.18.
    """
    with contextlib.suppress(OSError, CgroupError):
        own_procs().write_text("0")


def remove_groups(top: Path, *, timeout_s: float = 10.0) -> None:
    """Kills what runs in a group and in those in it, paused or not, and removes them all.

    Raises:
        CgroupError: a process is still there after `timeout_s` (it hangs in the kernel).
    """
    for folder, _, _ in os.walk(top, topdown=False):
        hierarchy = Hierarchies(Path(folder).parent, {})
        group = Cgroup(Path(folder).name, memory_bytes=0, processes=0, hierarchies=hierarchy)
        group.thaw()
        group.remove(timeout_s=timeout_s)
