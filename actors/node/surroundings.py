"""The environment in which this process runs: a machine, a container or a user namespace. Facts are read, not tried.

They explain a failure, and do not predict one: containers, security modules and kernels differ too much for that.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.node import mountinfo

_CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "NET_ADMIN": 12,
    "SYS_ADMIN": 21,
}
"""The capabilities that the service needs, and their bits. Source: linux/capability.h."""
_ALL_IDS = 2**32 - 1
_FILTERED = "2"
_USUAL_IN_PROC = ("autofs", "binfmt_misc", "nfsd")
"""File systems that machines mount below /proc themselves, on directories that are always empty."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The environment of this process, as /proc, /dev and the mounts show it."""

    root: bool
    missing: frozenset[str]
    """Capabilities that the service needs and this process lacks, or would lack as root; without CAP_."""
    user_namespace: bool
    """True if the users here are only a range of the machine's."""
    seccomp: bool
    """True if a filter of system calls is in force."""
    apparmor: str | None
    """The profile that confines this process."""
    masked_proc: bool
    """True if other mounts cover parts of /proc, as in containers."""
    cgroup: str | None
    """The way in which cgroup v2 is mounted: `ro` or `rw`; None where it is not."""
    cgroup_point: Path
    """The directory where it is mounted, or would be."""
    fuse: bool
    """True if /dev/fuse exists and may be opened."""
    loop: bool
    """True if /dev/loop-control exists and may be opened."""
    userns_limit: int | None
    """Number of user namespaces that may be made; None where the kernel does not say."""
    file_system: str
    """The type of the file system under the data folder."""
    shared_memory_bytes: int
    """The size of /dev/shm."""
    open_files: int
    """Number of files that a process may have open at most."""

    @classmethod
    def read(cls, data_dir: Path, proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> Surroundings:
        """Reads the facts. A file that does not exist counts as one that restricts nothing."""
        status = dict(line.split(":", 1) for line in _text(proc / "self/status").splitlines() if ":" in line)
        root = os.geteuid() == 0
        capabilities = int(status.get("CapEff" if root else "CapBnd", "0").strip(), 16)
        mounts = mountinfo.parse(_bytes(proc / "self/mountinfo"))
        group = _topmost([mount for mount in mounts if mount.fs_type == "cgroup2"])
        apparmor = _text(proc / "self/attr/current").strip("\0\n ")
        return cls(
            root=root,
            missing=frozenset(name for name, bit in _CAPABILITIES.items() if not capabilities >> bit & 1),
            user_namespace=_mapped_ids(_text(proc / "self/uid_map")) < _ALL_IDS,
            seccomp=status.get("Seccomp", "").strip() == _FILTERED,
            apparmor=apparmor if apparmor and not apparmor.startswith("unconfined") else None,
            masked_proc=any(proc in mount.point.parents and mount.fs_type not in _USUAL_IN_PROC for mount in mounts),
            cgroup=None if group is None else "ro" if "ro" in group.options else "rw",
            cgroup_point=Path("/sys/fs/cgroup") if group is None else group.point,
            fuse=_opens(dev / "fuse"),
            loop=_opens(dev / "loop-control"),
            userns_limit=_number(_text(proc / "sys/user/max_user_namespaces")),
            file_system=_file_system(mounts, data_dir),
            shared_memory_bytes=_size(dev / "shm"),
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        )


def _bytes(file: Path) -> bytes:
    with contextlib.suppress(OSError):
        return file.read_bytes()
    return b""


def _text(file: Path) -> str:
    return _bytes(file).decode(errors="replace")


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def _mapped_ids(uid_map: str) -> int:
    rows = [line.split() for line in uid_map.splitlines()]
    return sum(int(row[2]) for row in rows) if rows else _ALL_IDS


def _opens(device: Path) -> bool:
    """True if the device can be opened: a container's device list may refuse one whose node exists.

    Without root it only checks that the node exists.
    """
    if os.geteuid() != 0:
        return device.exists()
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return stat.S_ISCHR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        found = os.statvfs(folder)
        return found.f_blocks * found.f_frsize
    return 0


def _topmost(mounts: Sequence[mountinfo.Mount]) -> mountinfo.Mount | None:
    return mounts[-1] if mounts else None


def _file_system(mounts: Sequence[mountinfo.Mount], folder: Path) -> str:
    above = {folder.absolute(), *folder.absolute().parents}
    holding = [mount for mount in mounts if mount.point in above]
    return max(holding, key=lambda mount: len(mount.point.parts)).fs_type if holding else ""
