"""The control group of one sandbox's commands, which are killed, paused, resumed and limited together.

It lies below the group that the service was started in (`Hierarchies`). Pausing and killing use cgroup v2. Limits on
memory and processes, and an equal share of the processors, use v2's controllers where they are available, and the v1
hierarchies where a node (or its container) still has the controllers there.

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
from actors.node.hierarchies import PROCS, SERVICE_LEAF, Hierarchies, own_procs, unless_removed
from actors.node.memory import Rank, share_of_sandboxes, share_of_socket_buffers

JOIN = (
    f"{{ echo {int(Rank.COMMAND)} > /proc/self/oom_score_adj; }} 2> /dev/null; "
    'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"'
)
"""Shell program that enters each group named before `--`, then executes the arguments after it. It exits with 125 if it
cannot enter one."""

_THAW_WHEN_ORPHANED = 'read -r _ || echo 0 > "$1"'
"""The guard's shell program: thaws the group if the actor dies. A line on its input ends it without a thaw, because a
late thaw would end the next pause."""
_NOBODYS_CHILD = ("unshare", "--pid", "--fork", "--")
"""Puts a process between the actor and the guard: Ray kills the actor's own children. It also reaps the guard."""
_V1_LIMIT = {"memory": "memory.limit_in_bytes", "pids": "pids.max"}
_V2_LIMIT = {"memory": "memory.max", "pids": "pids.max"}
_V1_WEIGHT, _V2_WEIGHT = ("cpu.shares", 1024, 2**18), ("cpu.weight", 100, 10_000)
"""The file of a group's weight, the default weight (of a group, and of a process beside it), and the maximum."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits in force on all processes of a group together; None for no limit.

    `obstacle` is a sentence for the operator that says why a limit is not in force.
    """

    memory_bytes: int | None
    processes: int | None
    obstacle: str | None = None


class Cgroup:
    """One group of processes. `prepare` makes it, `remove` removes it."""

    def __init__(self, name: str, *, memory_bytes: int, processes: int, hierarchies: Hierarchies | None = None) -> None:
        """`name` is a path of at most two parts below the service's own group: the node's group and the sandbox's."""
        found = hierarchies or Hierarchies.find()
        self._name = name
        self._base = found.v2
        self._path = found.v2 / name
        self._v1 = {controller: where / name for controller, where in found.v1.items()}
        self._limits = {"memory": memory_bytes, "pids": processes}
        self._obstacle: str | None = None

    def prepare(self) -> None:
        """Makes the group and sets its limits. Idempotent."""
        self._path.mkdir(parents=True, exist_ok=True)
        self._obstacle = delegation.pass_on(delegation.Group(self._base), ["cpu", *self._limits])
        for controller in self._limits:
            if not self._limit_v2(controller):
                self._limit_v1(controller)
        self._limit_node()
        self._share_processors()

    def _pass_down(self, controller: str) -> None:
        """Enables a controller for the group, if the service's group delegates it."""
        for parent in reversed(self._path.parents):
            if parent.is_relative_to(self._base) and parent != self._base:
                with contextlib.suppress(OSError):
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")

    def _limit_v2(self, controller: str) -> bool:
        """Sets a limit by cgroup v2. Returns False if the service's group does not delegate the controller."""
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
                if controller == "memory":  # v1 counts socket buffers apart, without a limit
                    limit = min(self._limits[controller], share_of_socket_buffers())
                    (path / "memory.kmem.tcp.limit_in_bytes").write_text(str(limit))

    def _limit_node(self) -> None:
        """Limits memory and processes of the node's group, that is, of all sandboxes together."""
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
        """Gives each sandbox an equal part of the processors, however many processes it has.

        The node's group gets the weight of one process for each processor, if the service's processes are beside it
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
        """The limits in force, read from the kernel."""
        memory, pids = self._in_force("memory"), self._in_force("pids")
        without = [name for name, limit in (("memory", memory), ("processes", pids)) if limit is None]
        obstacle = None
        if without:
            obstacle = self._obstacle or f"this control group has no controller for {' and '.join(without)}."
        return Limits(memory, pids, obstacle)

    def _in_force(self, controller: str) -> int | None:
        """The limit that the kernel has. None if it is larger than the requested one, since it is then not ours."""
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
        """The argv that enters the group, then executes `argv`.

        Raises:
            CgroupError: the group has been removed. Nothing may run outside of it.
        """
        if not self._path.is_dir():
            raise CgroupError("the sandbox's control group is gone")
        groups = [path for path in (self._path, *self._v1.values()) if path.is_dir()]
        return ["/bin/sh", "-c", JOIN, "join", *(str(path / PROCS) for path in groups), "--", *argv]

    @contextlib.contextmanager
    def frozen(self, *, timeout_s: float = 10.0) -> Iterator[None]:
        """Pauses every process of the group within the block.

        If the actor dies meanwhile, a guard process resumes them.

        Raises:
            CgroupError: they could not all be paused in time (one may hang in the kernel). They run on.
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
        """Kills every process of the group, also paused ones, and waits until none is left or the group is removed.

        Raises:
            CgroupError: a process is still there after `timeout_s` (it hangs in the kernel).
        """
        kill = self._path / "cgroup.kill"
        if kill.exists():
            # Killed repeatedly, because a process may enter the group right after a kill.
            with unless_removed():
                self._wait_for("populated 0", timeout_s, "could not be ended", repeat=lambda: kill.write_text("1"))

    def thaw(self) -> None:
        """Resumes processes that a dead actor has left paused."""
        freeze = self._path / "cgroup.freeze"
        if freeze.exists():
            with unless_removed():
                freeze.write_text("0")

    def remove(self, *, timeout_s: float = 10.0) -> None:
        """Kills the group's processes and removes the group. Idempotent. Raises CgroupError as `kill`."""
        self.kill(timeout_s=timeout_s)
        for path in (self._path, *self._v1.values()):
            try:
                with unless_removed():
                    path.rmdir()
            except OSError as e:
                if e.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise

    @classmethod
    def remove_tree(cls, name: str, *, but_ours: bool = False) -> None:
        """Kills the processes in all groups of a name and below, and removes these groups. Idempotent.

        It searches the whole hierarchies, because an earlier run of the service may have started in another group.

        Args:
            but_ours: keep the groups that lie where this run of the service makes them.
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
    """Limit of processes for all sandboxes: nine tenths of the node's maximum of processes and threads.

    Source: proc_sys_kernel(5).
    """
    return min(int(Path(f"/proc/sys/kernel/{name}").read_text()) for name in ("pid_max", "threads-max")) * 9 // 10


def announce_entry() -> None:
    """Makes the next entry of a process into a group fast: 1 ms instead of 8 ms.

    In the kernel, the first move between groups after an idle time waits for an RCU grace period; moves right after it
    do not. This function moves this process into the group that it is in already, and blocks for that grace period.

    Source: cgroup_attach_lock in kernel/cgroup/cgroup.c and kernel/rcu/sync.c; measured on Linux 6.18.
    """
    with contextlib.suppress(OSError, CgroupError):
        own_procs().write_text("0")


def remove_groups(top: Path, *, timeout_s: float = 10.0) -> None:
    """Kills the processes in a group and in all groups below it, paused or not, and removes these groups.

    Raises:
        CgroupError: a process is still there after `timeout_s` (it hangs in the kernel).
    """
    for folder, _, _ in os.walk(top, topdown=False):
        hierarchy = Hierarchies(Path(folder).parent, {})
        group = Cgroup(Path(folder).name, memory_bytes=0, processes=0, hierarchies=hierarchy)
        group.thaw()
        group.remove(timeout_s=timeout_s)
