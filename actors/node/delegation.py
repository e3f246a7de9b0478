"""Delegation of cgroup controllers: the service's group enables them for the groups below it.

The kernel allows that in cgroup v2 only while no process is in the group itself ("no internal processes"). So all its
processes are moved into a leaf beside the sandboxes' groups, if all of them are the service's own. If other processes
share the group, none is moved: then there are no limits, and `doctor` says so.

Source: Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"; Docker's own image for Docker in
Docker does the same (hack/dind).
"""

from __future__ import annotations

import errno
import os
import sysconfig
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from actors.node.hierarchies import PROCS, SERVICE_LEAF

_ROUNDS = 50
"""Number of attempts. A process that is forked while its parent is moved needs another one."""
_FIRST_NAMESPACES = {"pid": "pid:[4026531836]", "cgroup": "cgroup:[4026531835]"}
"""The machine's first namespaces, which no container has. Source: include/linux/proc_ns.h."""
_OF_RAY = "ray-node"
"""Prefix of the names of the groups that Ray makes for its own processes, if configured to. Source: Ray 2.60."""
_PROC = Path("/proc")


class Group:
    """A group of cgroup v2: the files in its folder. Each method raises the kernel's error as OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    @property
    def is_rays(self) -> bool:
        """True if Ray made the group. Ray then keeps adding its workers to it."""
        return any(part.startswith(_OF_RAY) for part in self._folder.parts)

    def controllers(self) -> set[str]:
        """The controllers that the group has."""
        return set((self._folder / "cgroup.controllers").read_text().split())

    def passed_on(self) -> set[str]:
        """The controllers that the group has enabled for the groups below it."""
        return set((self._folder / "cgroup.subtree_control").read_text().split())

    def pass_on(self, controllers: Iterable[str]) -> None:
        """Enables controllers for the groups below it."""
        (self._folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(controllers)))

    def members(self) -> list[int]:
        """The pids of the processes in the group itself; 0 for each that our pid namespace does not show."""
        return [int(pid) for pid in (self._folder / PROCS).read_text().split()]

    def move_into_leaf(self, pid: int) -> None:
        """Moves a process, with its threads, into the service's leaf."""
        leaf = self._folder / SERVICE_LEAF
        leaf.mkdir(exist_ok=True)
        (leaf / PROCS).write_text(str(pid))


def pass_on(group: Group, controllers: Iterable[str]) -> str | None:
    """Enables controllers below the service's group, as far as it has them itself. Idempotent.

    Returns:
        None on success; else the obstacle, in a sentence.
    """
    try:
        wanted = group.controllers() & set(controllers)
        for _ in range(_ROUNDS):
            missing = wanted - group.passed_on()
            if not missing:
                return None
            try:
                group.pass_on(missing)
            except OSError as e:
                if e.errno != errno.EBUSY:
                    raise
                if (obstacle := _make_room(group)) is not None:
                    return obstacle
    except OSError as e:
        return f"the control group {group} cannot be arranged: {os.strerror(e.errno or 0)}."
    return f"new processes keep coming into the control group {group}."


def _make_room(group: Group) -> str | None:
    """Moves all processes of the service's group into its leaf; or moves none, and returns the obstacle."""
    members = group.members()
    if group.is_rays:
        return f"Ray itself keeps its processes in the control group {group}."
    if others := strangers(members, processes(), own_pid=os.getpid()):
        return f"other processes than the service's are in the control group {group}: {_named(others)}."
    for pid in members:
        with suppress(ProcessLookupError):  # it has just ended
            group.move_into_leaf(pid)
    return None


def strangers(members: Iterable[int], table: Mapping[int, tuple[int, bool]], *, own_pid: int) -> list[int]:
    """Returns those of a group's processes that are not the service's. 0 stands for a process that we cannot see.

    Args:
        table: the parent of each process, and True if the process and all its descendants are the service's.
    """

    def is_ours(pid: int) -> bool:
        seen = set()
        while pid in table and pid not in seen:
            seen.add(pid)
            parent, is_the_services = table[pid]
            if is_the_services or pid == own_pid:
                return True
            pid = parent
        return False

    return [pid for pid in members if pid == 0 or (pid in table and not is_ours(pid))]


def processes() -> dict[int, tuple[int, bool]]:
    """Maps every visible pid to its parent's pid, and to True if the process is the service's own.

    The service's own are the processes that run Ray or this project, and all processes of our container: those in the
    same pid or cgroup namespace as we, if that is not the machine's first.
    """
    program = os.fsencode(sysconfig.get_path("platlib")) + b"/"
    shared = {kind: _namespace("self", kind) for kind in _FIRST_NAMESPACES}
    private = {kind: own for kind, own in shared.items() if own != _FIRST_NAMESPACES[kind]}
    table = {}
    for entry in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            is_ours = (
                program in command
                or command.startswith(b"ray::")
                or any(_namespace(entry.name, kind) == own for kind, own in private.items())
            )
            table[int(entry.name)] = (int(stat[1]), is_ours)
    return table


def _namespace(process: str, kind: str) -> str:
    return os.readlink(_PROC / process / "ns" / kind)


def _named(pids: list[int]) -> str:
    names = []
    for pid in pids[:3]:
        with suppress(OSError):
            names.append((_PROC / str(pid) / "comm").read_text().strip())
    return ", ".join(dict.fromkeys(names)) or "in another pid namespace"
