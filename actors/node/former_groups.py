"""Removal of an earlier layout's control groups, which lie at the hierarchies' roots, named by the data folder's path.

Two services with the same path in two mount namespaces shared such a group. So it is removed only if no other service
is seen with this path.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from actors.node.cgroup import remove_groups
from actors.node.hierarchies import Hierarchies, pids_in

_LOCK = "lock"
_PRESENCE = "node/presence"
_DELETED = " (deleted)"
_FIRST_PID_NAMESPACE = "pid:[4026531836]"


def remove(data_dir: Path) -> None:
    """Kills the processes in the groups that an earlier release made for this data folder, and removes these groups.

    Raises:
        CgroupError: a process in one of them hangs in the kernel, or as `Hierarchies.find`.
    """
    name = f"holdfast-{hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]}"
    tops = [root / name for root in Hierarchies.find().roots if (root / name).is_dir()]
    if tops and not _is_shared(tops) and not _has_another_service(data_dir):
        for top in tops:
            remove_groups(top)


def _is_shared(tops: list[Path]) -> bool:
    """True if a service that we cannot see, in another pid namespace, may use the groups."""
    pids = [pid for top in tops for folder, _, _ in os.walk(top) for pid in pids_in(Path(folder))]
    return 0 in pids or (not pids and os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE)


def _has_another_service(data_dir: Path) -> bool:
    """True if a process has a service's lock files open at the paths of ours, and they are other files than ours."""
    places = (str(data_dir / _LOCK), str(data_dir / _PRESENCE))
    for link in _open_files():
        with suppress(OSError):
            path = os.readlink(link)
            if (path == places[0] or path.startswith(f"{places[1]}/")) and not path.endswith(_DELETED):
                opened = os.stat(link)
                if not (os.path.exists(path) and os.path.samestat(opened, os.stat(path))):
                    return True
    return False


def _open_files() -> Iterator[str]:
    """The links to the open files of all processes. Any of them may be gone by the time it is read."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        numbers: list[str] = []
        with suppress(OSError):  # the process has ended
            numbers = os.listdir(f"/proc/{pid}/fd")
        yield from (f"/proc/{pid}/fd/{number}" for number in numbers)
