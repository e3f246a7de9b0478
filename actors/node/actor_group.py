"""The control group of a sandbox's actor: every process that the actor starts is born in it.

So a process that holds a mount or a loop device is always in a group that names its actor, even if it is killed right
after its start. Commands move on into their sandbox's group. What a dead actor has left in its group is ended by the
service's sweeper, and by any actor of the node before it mounts its layers: for example a bubblewrap whose child waits
for a killed parent.

    <the service's group>/holdfast-<identity>/actor-<pid>-<start time>
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from actors.logs import log
from actors.node.cgroup import remove_groups
from actors.node.errors import CgroupError
from actors.node.hierarchies import ACTOR, PROCS, Hierarchies, pids_in

_PROC = Path("/proc")
_END_S = 3.0
_FLAGS, _STARTED = 6, 19
"""Indices of a process's flags and start time in /proc/<pid>/stat, after the name. Source: proc_pid_stat(5)."""
_EXITING = 0x4
"""The flag of a process that is ending, PF_EXITING. Source: include/linux/sched.h."""


def enter(node_group: str) -> None:
    """Moves this process into a new group of its own below the node's. What it starts from now on is born there.

    Raises:
        CgroupError, OSError: the process cannot be moved.
    """
    own = Hierarchies.find().v2 / node_group / _name("self")
    own.mkdir(parents=True, exist_ok=True)
    (own / PROCS).write_text("0")


def end_orphans(node_group: str) -> int:
    """Kills the processes that dead actors have left, and removes their groups. Returns the number of these processes.

    The group of a process that hangs in the kernel is named in the log, and left.

    Raises:
        CgroupError: as `Hierarchies.find`.
    """
    ended = 0
    for group in (Hierarchies.find().v2 / node_group).glob(f"{ACTOR}*"):
        if _lives(group.name):
            continue
        orphans = pids_in(group)
        for pid in orphans:
            log.warning("orphan_ended", pid=pid, name=_comm(pid), of=group.name)
        ended += len(orphans)
        try:
            remove_groups(group, timeout_s=_END_S)
        except CgroupError as e:
            log.error("orphan_hangs", of=group.name, detail=e.message)
    return ended


def _name(process: str) -> str:
    pid, started = _identity(process)
    return f"{ACTOR}{pid}-{started}"


def _lives(name: str) -> bool:
    pid, _, started = name.removeprefix(ACTOR).partition("-")
    try:
        return _identity(pid) == (pid, started)
    except OSError:
        return False


def _identity(process: str) -> tuple[str, str]:
    """The pid and start time of a process, which no other process has had.

    Raises FileNotFoundError if it is dead, or is ending: a successor may begin once its locks are gone, before it is
    dead.
    """
    pid, _, rest = (_PROC / process / "stat").read_text().partition(" ")
    fields = rest.rpartition(")")[2].split()
    if fields[0] in ("Z", "X") or int(fields[_FLAGS]) & _EXITING:
        raise FileNotFoundError(process)
    return pid, fields[_STARTED]


def _comm(pid: int) -> str:
    with suppress(OSError):
        return (_PROC / str(pid) / "comm").read_text().strip()
    return "?"
