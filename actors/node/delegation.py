"""Delegation of controllers: the service's group passes them on to the groups below it.

The kernel lets a group of cgroup v2 do that only while no process is in the group itself ("no internal processes").
So all that are in it move into a leaf beside the sandboxes' groups, if all of them are the service's own. Whoever else
shares the group is left where he is; then there are no limits, and `doctor` says so.

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
"""How often we look for processes that were forked while their parents were being moved."""
_FIRST_NAMESPACES = {"pid": "pid:[4026531836]", "cgroup": "cgroup:[4026531835]"}
"""Those that no container has. Source: include/linux/proc_ns.h."""
_OF_RAY = "ray-node"
"""The beginning of the names of groups in which Ray keeps its own processes, where told to. Source: Ray 2.60."""
_PROC = Path("/proc")


class Group:
    """A group of cgroup v2: its folder's files. Each method raises the OSError that the kernel answers with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    @property
    def is_rays(self) -> bool:
        """Whether Ray made it: it goes on putting its workers there."""
        return any(part.startswith(_OF_RAY) for part in self._folder.parts)

    def controllers(self) -> set[str]:
        """The controllers that it has."""
        return set((self._folder / "cgroup.controllers").read_text().split())

    def passed_on(self) -> set[str]:
        """The controllers that the groups in it have."""
        return set((self._folder / "cgroup.subtree_control").read_text().split())

    def pass_on(self, controllers: Iterable[str]) -> None:
        """Gives controllers to the groups in it."""
        (self._folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(controllers)))

    def members(self) -> list[int]:
        """The processes in the group itself; 0 for each that is not in sight of our pid namespace."""
        return [int(pid) for pid in (self._folder / PROCS).read_text().split()]

    def move_into_leaf(self, pid: int) -> None:
        """Moves a process, with its threads, into the service's leaf."""
        leaf = self._folder / SERVICE_LEAF
        leaf.mkdir(exist_ok=True)
        (leaf / PROCS).write_text(str(pid))


def pass_on(group: Group, controllers: Iterable[str]) -> str | None:
    """Has the service's group pass on these controllers, as far as it has them itself. Repeatable.

    Returns:
        None when it does; else what keeps it from that, in a sentence.
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
    """Moves all that are in the service's group into its leaf, or nobody; returns what forbids it."""
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
    """Those of a group's processes that are not the service's. 0 stands for each one that we cannot see.

    Args:
        table: of each process its parent, and whether it is one of those of which all descendants are the service's.
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
    """Of every process in sight its parent, and whether it is the service's.

    That is who runs Ray or this project, and everybody in our container: with us in a pid namespace or a cgroup
    namespace that is not the machine's first.
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
