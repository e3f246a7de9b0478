"""The node's hierarchies of control groups, and in each the group that the service was started in.

All groups that the service makes lie below that group. So the limits and the accounting of the service (of a pod, or a
systemd unit) include its sandboxes' commands.

Source: cgroups(7) and cgroup_namespaces(7) for both files; Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from actors.node import mountinfo
from actors.node.errors import CgroupError

SERVICE_LEAF = "holdfast-service"
"""Name of the group, below the one that the service was started in, into which its own processes are moved."""
ACTOR = "actor-"
"""Prefix of the names of the groups that the actors make for their own processes, in the node's group."""
PROCS = "cgroup.procs"
_CONTROLLERS = ("cpu", "memory", "pids")
_OF_A_REMOVED_GROUP = (errno.ENOENT, errno.ENODEV)
"""The second one where the file was opened before. Source: kernfs_get_active in fs/kernfs/dir.c."""
_MOUNTS = Path("/proc/self/mountinfo")
_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """The folder, in each hierarchy, of the group that the service was started in. `v1` has one for each controller."""

    v2: Path
    v1: dict[str, Path]
    roots: tuple[Path, ...] = ()
    """The mount points of the hierarchies, that of v2 first."""

    @classmethod
    def find(cls, mounts: Path = _MOUNTS, groups: Path = _GROUPS) -> Hierarchies:
        """Finds the hierarchies from this process's mounts and groups.

        Raises:
            CgroupError: cgroup v2 is not mounted here, or not writable.
        """
        own = _own_groups(groups.read_text())
        v2: tuple[Path, Path] | None = None
        v1: dict[str, tuple[Path, Path]] = {}
        for mount in mountinfo.parse(mounts.read_bytes()):
            if mount.fs_type == "cgroup2" and v2 is None:
                v2 = _placed(mount, own.get(""))
            elif mount.fs_type == "cgroup":
                for controller in set(_CONTROLLERS) & set(mount.super_options) & own.keys() - v1.keys():
                    if found := _placed(mount, own[controller]):
                        v1[controller] = found
        if v2 is None:
            raise CgroupError("no cgroup v2 hierarchy is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup")
        if not os.access(v2[1], os.W_OK):
            raise CgroupError(
                f"the cgroup v2 hierarchy is read-only at {v2[1]}",
                hint=f"mount -o remount,bind,rw {v2[0]} (a container needs CAP_SYS_ADMIN for it, or a writable mount)",
            )
        roots = dict.fromkeys([v2[0], *(root for root, _ in v1.values())])
        return cls(v2[1], {controller: base for controller, (_, base) in v1.items()}, tuple(roots))

    def named(self, name: str) -> Iterator[Path]:
        """Yields every group with this name, anywhere in the hierarchies; those of v2 first."""
        for root in self.roots:
            for folder, children, _ in os.walk(root):
                if name in children:
                    yield Path(folder, name)


@contextmanager
def unless_removed() -> Iterator[None]:
    """Ends the block, without an error, where it meets a group that another process has removed meanwhile."""
    try:
        yield
    except OSError as e:
        if e.errno not in _OF_A_REMOVED_GROUP:
            raise


def pids_in(group: Path) -> list[int]:
    """The pids of the processes in a group itself; 0 for each that our pid namespace does not show.

    There are none in a group that has been removed. Raises OSError.
    """
    with unless_removed():
        return [int(pid) for pid in (group / PROCS).read_text().split()]
    return []


def own_procs() -> Path:
    """The `cgroup.procs` file of the cgroup v2 group that this process is in now.

    Raises:
        CgroupError: as `Hierarchies.find`.
    """
    own = PurePosixPath(_own_groups(_GROUPS.read_text())[""])
    return _base() / own.relative_to(_started_in(own)) / PROCS


@functools.cache
def _base() -> Path:
    return Hierarchies.find().v2


def _own_groups(text: str) -> dict[str, str]:
    """Parses /proc/<pid>/cgroup. Returns the process's group for each controller; the key "" is cgroup v2."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, group = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), group)
    return found


def _placed(mount: mountinfo.Mount, group: str | None) -> tuple[Path, Path] | None:
    """The mount point of a hierarchy, and the folder of the service's group in it. None if it is not visible there."""
    if group is None:
        return None
    inside = _started_in(PurePosixPath(group))
    if ".." not in PurePosixPath(mount.root).parts and inside.is_relative_to(mount.root):
        return mount.point, mount.point / inside.relative_to(mount.root)
    found = _search(mount.point)
    return None if found is None else (mount.point, found)


def _search(root: Path) -> Path | None:
    """Finds the service's group by our pid, for a hierarchy that was mounted in another cgroup namespace.

    Such a mount does not tell which group its root is.
    """
    for folder, _, _ in os.walk(root):
        with suppress(OSError):
            if os.getpid() in pids_in(Path(folder)):
                return Path(_started_in(PurePosixPath(folder)))
    return None


def _started_in(own: PurePosixPath) -> PurePosixPath:
    """Derives the group that the service was started in from the group that one of its processes is in now."""
    if own.name.startswith(ACTOR) and own.parent.name.startswith("holdfast-"):
        return own.parent.parent
    return own.parent if own.name == SERVICE_LEAF else own
