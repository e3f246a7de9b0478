"""The mounts of this process's mount namespace, as the kernel lists them, and a probe that tells whether one answers.

`os.path.exists`, `lexists` and `ismount` do not see a mount whose FUSE daemon is dead, and every access to a mount
whose daemon hangs blocks. So the table comes from /proc/self/mountinfo, which asks no daemon, and only a child that
can be killed accesses a mount.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from actors.node import process

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_PROBE = "import os, sys; os.statvfs(sys.argv[1]); next(os.scandir(sys.argv[1]), None)"
_KILLED_CHILD_S = 2.0


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `options` belong to the mount, `super_options` to its file system.

    Source: proc_pid_mountinfo(5).
    """

    id: int
    parent_id: int
    device: str
    root: str
    point: Path
    options: frozenset[str]
    fs_type: str
    source: str
    super_options: tuple[str, ...]


def parse(text: bytes) -> list[Mount]:
    """The mounts of a mountinfo file, in its order."""
    return [_parse_line(line) for line in text.split(b"\n") if line]


def mounts() -> list[Mount]:
    """Every mount of this process's namespace."""
    return parse(_MOUNTINFO.read_bytes())


def mounts_under(path: Path) -> list[Mount]:
    """The mounts at and below `path` (absolute, without symlinks), in an order in which they can be unmounted."""
    below = [mount for mount in reversed(mounts()) if mount.point.is_relative_to(path)]
    return sorted(below, key=lambda mount: -len(mount.point.parts))


def find(path: Path) -> Mount | None:
    """The top-most mount at exactly `path` (absolute, without symlinks); None if there is none."""
    here = [mount for mount in mounts() if mount.point == path]
    covered = {mount.parent_id for mount in here}
    return next((mount for mount in reversed(here) if mount.id not in covered), None)


def id_of(fd: int) -> int:
    """The id of the mount that an open file lies on, as in `Mount.id`. Source: proc_pid_fdinfo(5)."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))


def probe(path: Path, *, timeout_s: float) -> str | None:
    """Asks the file system at `path` for its statistics and a first directory entry.

    Returns:
        None if it answers, else the fault: the error, or that it did not answer in time.
    """
    child = process.start([sys.executable, "-I", "-S", "-c", _PROBE, str(path)], stdout=subprocess.DEVNULL, cwd="/")
    try:
        _, stderr = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _abandon(child)
        return f"it did not answer within {timeout_s:g} s"
    if child.returncode == 0:
        return None
    lines = os.fsdecode(stderr).strip().splitlines()
    return lines[-1] if lines else f"the probe ended with status {child.returncode}"


def look(path: Path) -> str | None:
    """Does what `probe` does, without a child: only for a file system of the kernel's own, which no daemon serves."""
    try:
        os.statvfs(path)
        with os.scandir(path) as entries:
            next(entries, None)
    except OSError as e:
        return f"{type(e).__name__}: {e}"
    return None


def _abandon(child: subprocess.Popen[bytes]) -> None:
    """Kills a probe and waits for it briefly: a request that a FUSE daemon has taken cannot be interrupted."""
    child.kill()
    if child.stderr is not None:
        child.stderr.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_KILLED_CHILD_S)


def _parse_line(line: bytes) -> Mount:
    head, _, tail = line.partition(b" - ")
    mount_id, parent_id, device, root, point, options, *_ = head.split(b" ")
    fs_type, source, super_options = tail.split(b" ")[:3]
    return Mount(
        id=int(mount_id),
        parent_id=int(parent_id),
        device=device.decode(),
        root=_unescape(root),
        point=Path(_unescape(point)),
        options=frozenset(options.decode().split(",")),
        fs_type=fs_type.decode(),
        source=_unescape(source),
        super_options=tuple(_unescape(option) for option in super_options.split(b",")),
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))
