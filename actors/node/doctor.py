"""What this machine offers and lacks, found out by trying."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from actors.node import process
from actors.node.box_trials import tried_boxes
from actors.node.cgroup import Cgroup, Limits
from actors.node.driver_choice import available
from actors.node.errors import NodeError

PACKAGES = {
    "mksquashfs": "squashfs-tools",
    "unsquashfs": "squashfs-tools",
    "squashfuse_ll": "squashfuse",
    "fuse-overlayfs": "fuse-overlayfs",
    "fusermount3": "fuse3",
    "bwrap": "bubblewrap",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "prlimit": "util-linux",
    "mount": "mount",
    "tar": "tar",
}
_BOX_FIXES = (
    ("unshare: unshare failed", "give the service CAP_SYS_ADMIN: it makes mount and network namespaces"),
    ("Creating new namespace failed", "give the service CAP_SYS_ADMIN: it makes mount and pid namespaces"),
    ("chown: ", "give the service CAP_CHOWN"),
)
_OTHER_BOX_FIX = "sysctl kernel.unprivileged_userns_clone=1; in a container, allow user namespaces and mounts"
_NEEDED_BY_ONE_DRIVER = ("squashfuse_ll", "fuse-overlayfs", "fusermount3")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried. `fix` says what to do where it failed."""

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str | None = None


def examine(data_dir: Path, uid: int, *, network: bool = False) -> list[Finding]:
    """Tries everything that sandboxes on this machine need. Leaves nothing behind.

    `network` says whether commands are to have the node's network.
    """
    findings = [_root(), *_tools()]
    if all(finding.ok for finding in findings if finding.required):
        findings += [*_boxes(uid, network=network), *_cgroup(), *_drivers(data_dir)]
    return findings


def _root() -> Finding:
    ok = os.geteuid() == 0
    return Finding(
        "root",
        ok,
        required=True,
        detail="runs as root" if ok else "does not run as root",
        fix=None if ok else "run as root",
    )


def _tools() -> list[Finding]:
    findings = []
    for program, package in PACKAGES.items():
        path = shutil.which(program, path=process.ENVIRONMENT["PATH"])
        required = program not in _NEEDED_BY_ONE_DRIVER
        fix = None if path else f"apt-get install {package}"
        findings.append(Finding(program, path is not None, required, path or "not installed", fix))
    return findings


def _boxes(uid: int, *, network: bool) -> list[Finding]:
    """One finding for each kind of box that is ever built."""
    return [
        Finding(
            tried.trial.name,
            tried.obstacle is None,
            required=True,
            detail=tried.obstacle or tried.trial.purpose,
            fix=_box_fix(tried.obstacle) if tried.obstacle is not None else None,
        )
        for tried in tried_boxes(uid, network=network)
    ]


def _box_fix(obstacle: str) -> str:
    """What to do about a box that cannot be built, or in which something is refused, by its own words."""
    return next((fix for words, fix in _BOX_FIXES if words in obstacle), _OTHER_BOX_FIX)


def _cgroup() -> list[Finding]:
    try:
        group = Cgroup(f"holdfast-doctor-{os.getpid()}", memory_bytes=2**30, processes=100)
        try:
            group.prepare()
            with group.frozen():
                pass
            limits = group.limits()
        finally:
            group.remove()
    except (NodeError, OSError) as e:
        fix = e.hint if isinstance(e, NodeError) else "mount a writable cgroup v2 hierarchy"
        return [Finding("cgroup", ok=False, required=True, detail=str(e), fix=fix)]
    return [Finding("cgroup", ok=True, required=True, detail="pauses and ends commands"), _limits(limits)]


def _limits(limits: Limits) -> Finding:
    if limits.obstacle is None:
        return Finding("limits", ok=True, required=False, detail="memory and processes of commands are limited")
    fix = "start the service in a control group of its own: in a container, or by systemd-run --scope -p Delegate=yes"
    return Finding("limits", ok=False, required=False, detail=f"not all in force: {limits.obstacle}", fix=fix)


def _drivers(data_dir: Path) -> list[Finding]:
    obstacles = available(data_dir / "node" / "driver")
    any_works = any(obstacle is None for obstacle in obstacles.values())
    return [
        Finding(
            f"driver {driver}",
            obstacle is None,
            required=not any_works,
            detail="mounts" if obstacle is None else obstacle,
        )
        for driver, obstacle in obstacles.items()
    ]
