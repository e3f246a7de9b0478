"""The control group of an actor's own process, in which all that it starts is born.

So nothing that it starts can hold a mount or a loop device, however early it is cut short, without being in a group
that tells whose it is. Commands leave it for the group of their sandbox. When the actor is dead, whoever comes next
ends what is left in its group before it mounts anything: a bubblewrap, say, whose child waits for a killed parent.

    <the service's group>/holdfast-<identity>/actor-<pid>-<when it started>
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from actors.logs import log
from actors.node.cgroup import remove_groups
from actors.node.errors import CgroupError
from actors.node.hierarchies import ACTOR, PROCS, Hierarchies

_PROC = Path("/proc")
_END_S = 3.0
_STARTED = 19
"""The field of /proc/<pid>/stat, counted after the name. Source: proc_pid_stat(5), starttime."""


def enter(node_group: str) -> None:
    """Moves this process into a group of its own, below the node's. What it starts from now on is born there.

    Raises:
        CgroupError, OSError: it cannot be moved.
    """
    own = Hierarchies.find().v2 / node_group / _name("self")
    own.mkdir(parents=True, exist_ok=True)
    (own / PROCS).write_text("0")


def end_orphans(node_group: str) -> int:
    """Ends all that actors that are dead have started, and removes their groups; returns how many processes it were.

    One that hangs in the kernel is named in the log, and left.

    Raises:
        CgroupError: as `Hierarchies.find`.
    """
    ended = 0
    for group in (Hierarchies.find().v2 / node_group).glob(f"{ACTOR}*"):
        if _lives(group.name):
            continue
        with suppress(FileNotFoundError):  # somebody else was quicker
            orphans = (group / PROCS).read_text().split()
            for pid in orphans:
                log.warning("orphan_ended", pid=int(pid), name=_comm(pid), of=group.name)
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
    """What tells a process from all that have ever had its pid. Raises FileNotFoundError for one that is dead."""
    pid, _, rest = (_PROC / process / "stat").read_text().partition(" ")
    fields = rest.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        raise FileNotFoundError(process)
    return pid, fields[_STARTED]


def _comm(pid: str) -> str:
    with suppress(OSError):
        return (_PROC / pid / "comm").read_text().strip()
    return "?"
