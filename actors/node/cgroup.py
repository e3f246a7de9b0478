"""The control group of one sandbox's commands: stopped, paused, resumed and limited as one.

Pausing and killing are cgroup v2's. Limits on memory and processes use v2's controllers where they can be
had, and the v1 hierarchies where a node (or its container) still keeps the controllers there.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from actors.node import process
from actors.node.errors import CgroupError

JOIN = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"'
"""A shell's whole program: enters each group that is named before `--`, then becomes what is named after it."""

_THAW_WHEN_ORPHANED = 'read -r _ || echo 0 > "$1"'
"""The guard's program. It is dismissed by a line, because a thaw that comes late would hit the next pause."""
_V1_LIMIT = {"memory": "memory.limit_in_bytes", "pids": "pids.max"}
_MOUNTINFO = Path("/proc/self/mountinfo")
_OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where this node's control groups are mounted. `v1` maps a controller's name to its hierarchy."""

    v2: Path
    v1: dict[str, Path]

    @classmethod
    def find(cls, mountinfo: Path = _MOUNTINFO) -> Hierarchies:
        """Reads the mounts. Raises CgroupError where there is no writable cgroup v2."""
        v2: Path | None = None
        v1: dict[str, Path] = {}
        for line in mountinfo.read_text().splitlines():
            fields, _, tail = line.partition(" - ")
            kind, _, options = tail.split(" ", 2)
            where = Path(fields.split(" ")[4])
            if kind == "cgroup2" and v2 is None:
                v2 = where
            elif kind == "cgroup":
                v1 |= {name: where for name in options.split(",") if name in ("memory", "pids")}
        if v2 is None or not os.access(v2, os.W_OK):
            raise CgroupError(
                "no writable cgroup v2 hierarchy is mounted",
                hint="mount -t cgroup2 none /sys/fs/cgroup (in a container: run it with a writable cgroup namespace)",
            )
        return cls(v2, v1)


class Cgroup:
    """One group of processes. Made on the first use, removed by `remove`."""

    def __init__(self, name: str, *, memory_bytes: int, processes: int, hierarchies: Hierarchies | None = None) -> None:
        """`name` is a relative path of at most two parts: the service's group and the sandbox's."""
        found = hierarchies or Hierarchies.find()
        self._name = name
        self._path = found.v2 / name
        self._v1 = {controller: where / name for controller, where in found.v1.items()}
        self._limits = {"memory": memory_bytes, "pids": processes}
        self.limited: set[str] = set()

    def prepare(self) -> None:
        """Makes the group and sets its limits. Repeatable."""
        self._path.mkdir(parents=True, exist_ok=True)
        for controller in ("memory", "pids"):
            if self._limit_v2(controller) or self._limit_v1(controller):
                self.limited.add(controller)

    def _limit_v2(self, controller: str) -> bool:
        for parent in reversed([p for p in self._path.parents if (p / "cgroup.controllers").exists()]):
            with contextlib.suppress(OSError):
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        limit = self._path / f"{controller}.max"
        if not limit.exists():
            return False
        limit.write_text(str(self._limits[controller]))
        if controller == "memory":
            with contextlib.suppress(OSError):
                (self._path / "memory.swap.max").write_text("0")
        return True

    def _limit_v1(self, controller: str) -> bool:
        path = self._v1.get(controller)
        if path is None:
            return False
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / _V1_LIMIT[controller]).write_text(str(self._limits[controller]))
        except OSError:
            return False
        return True

    def entry(self, argv: list[str]) -> list[str]:
        """The argv that enters the group and then becomes `argv`.

        Raises:
            CgroupError: the group has been removed; nothing may run outside of it.
        """
        if not self._path.is_dir():
            raise CgroupError("the sandbox's control group is gone")
        groups = [path for path in (self._path, *self._v1.values()) if path.is_dir()]
        return ["/bin/sh", "-c", JOIN, "join", *(str(path / "cgroup.procs") for path in groups), "--", *argv]

    def pids(self) -> list[int]:
        """The processes in the group now."""
        try:
            return [int(pid) for pid in (self._path / "cgroup.procs").read_text().split()]
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def frozen(self, *, timeout_s: float = 10.0) -> Iterator[None]:
        """Pauses every process of the group within the block.

        A guard outside of the actor's process tree resumes them should the actor die meanwhile.

        Raises:
            CgroupError: they could not be paused in time (one may hang in the kernel); all run on.
        """
        freeze = self._path / "cgroup.freeze"
        guard = process.start(
            ["setsid", "--fork", "/bin/sh", "-c", _THAW_WHEN_ORPHANED, "thaw", str(freeze)],
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
        with contextlib.suppress(FileNotFoundError):
            (self._path / "cgroup.freeze").write_text("0")

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
    def remove_tree(cls, name: str) -> None:
        """Kills what runs in a service's group and in those of its sandboxes, and removes them all. Repeatable."""
        found = Hierarchies.find()
        tops = [where / name for where in (found.v2, *found.v1.values())]
        for child in {path.name for top in tops if top.is_dir() for path in top.iterdir() if path.is_dir()}:
            group = cls(f"{name}/{child}", memory_bytes=0, processes=0, hierarchies=found)
            group.thaw()
            group.remove()
        cls(name, memory_bytes=0, processes=0, hierarchies=found).remove()

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


def announce_entry() -> None:
    """Has the kernel ready for a process that is about to enter a group: that takes it 1 ms then, and 8 ms otherwise.

    The first change of groups after a pause waits for a grace period of RCU, and those that follow at once do not. This
    is such a change, of this process into the group that it is in; so nothing changes. Blocks as long as it takes.

    Source: cgroup_attach_lock in kernel/cgroup/cgroup.c and kernel/rcu/sync.c; measured on Linux 6.18.
    """
    with contextlib.suppress(OSError, CgroupError):
        _own_group().write_text("0")


@functools.cache
def _own_group() -> Path:
    own = next(line[3:] for line in _OWN_GROUPS.read_text().splitlines() if line.startswith("0::"))
    return Hierarchies.find().v2 / own.lstrip("/") / "cgroup.procs"
