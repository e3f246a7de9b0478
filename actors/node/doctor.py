"""What this machine offers and lacks, found out by trying."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from actors.node import process
from actors.node.box_trials import tried_boxes
from actors.node.causes import NOT_ROOT, USES, brief, cgroup_cause, explain, foreseen, lacking, option
from actors.node.cgroup import Cgroup, Limits
from actors.node.driver_choice import available
from actors.node.errors import NodeError
from actors.node.surroundings import Surroundings

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
_NEEDED_BY_ONE_DRIVER = ("squashfuse_ll", "fuse-overlayfs", "fusermount3")


_SHARED_MEMORY_BYTES = 600 * 1024**2
"""Room for Ray's object store of 512 MiB, of which it wants a tenth to spare."""
_OPEN_FILES = 8192
"""Below it Ray warns that connections may fail. Source: Ray 2.60."""
_BOX_FIX = "allow user namespaces and mounts: sysctl user.max_user_namespaces, and in a container its privileges"


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

    Says all that is wrong at once, so that a manifest need not be changed line by line: without root, too.
    `network` says whether commands are to have the node's network.
    """
    here = Surroundings.read(data_dir)
    tools = _tools()
    findings = [_root(here), *tools, _capabilities(here), *_room(here)]
    if not here.root:
        findings += [Finding(name, ok=False, required=False, detail=c.why, fix=c.fix) for name, c in foreseen(here)]
    if all(finding.ok for finding in tools if finding.required):
        findings += [*_boxes(uid, here, network=network), *_cgroup(here), *_drivers(data_dir, here)]
    return findings


def _root(here: Surroundings) -> Finding:
    if here.root:
        return Finding("root", ok=True, required=True, detail="runs as root")
    return Finding("root", ok=False, required=True, detail=NOT_ROOT.why, fix=NOT_ROOT.fix)


def _tools() -> list[Finding]:
    findings = []
    for program, package in PACKAGES.items():
        path = shutil.which(program, path=process.ENVIRONMENT["PATH"])
        required = program not in _NEEDED_BY_ONE_DRIVER
        fix = None if path else f"apt-get install {package}"
        findings.append(Finding(program, path is not None, required, path or "not installed", fix))
    return findings


def _capabilities(here: Surroundings) -> Finding:
    """Not required by itself: the boxes and the drivers are tried, and they say what they cannot do."""
    if not here.missing:
        return Finding("capabilities", ok=True, required=False, detail=f"has all that are needed: {', '.join(USES)}")
    names = sorted(here.missing)
    uses = ", ".join(dict.fromkeys(USES[name] for name in names))
    cause = lacking(*names)
    return Finding("capabilities", ok=False, required=False, detail=f"{cause.why} ({uses})", fix=cause.fix)


def _room(here: Surroundings) -> list[Finding]:
    """What Ray asks of a machine, and containers have little of."""
    shm, files = here.shared_memory_bytes, here.open_files
    return [
        Finding(
            "shared memory",
            shm >= _SHARED_MEMORY_BYTES,
            required=False,
            detail=f"/dev/shm has {shm >> 20} MiB"
            + ("" if shm >= _SHARED_MEMORY_BYTES else "; Ray keeps its objects on the disk instead"),
            fix=None
            if shm >= _SHARED_MEMORY_BYTES
            else option("--shm-size 1g", "an emptyDir with medium: Memory at /dev/shm"),
        ),
        Finding(
            "open files",
            files >= _OPEN_FILES,
            required=False,
            detail=f"a process may open {files}",
            fix=None if files >= _OPEN_FILES else option("--ulimit nofile=65536:65536", "the runtime's LimitNOFILE"),
        ),
    ]


def _failed(name: str, failure: str, here: Surroundings, *, required: bool = True, otherwise: str | None) -> Finding:
    """The finding for what was tried in vain: its own words in short, the cause where it is known, and the fix."""
    cause = explain(failure, here)
    if cause is None:
        return Finding(name, ok=False, required=required, detail=brief(failure), fix=otherwise)
    return Finding(name, ok=False, required=required, detail=f"{brief(failure)} ({cause.why})", fix=cause.fix)


def _boxes(uid: int, here: Surroundings, *, network: bool) -> list[Finding]:
    """One finding for each kind of box that is ever built; a single one where none can be tried."""
    try:
        return [
            Finding(tried.trial.name, ok=True, required=True, detail=tried.trial.purpose)
            if tried.obstacle is None
            else _failed(tried.trial.name, tried.obstacle, here, otherwise=_BOX_FIX)
            for tried in tried_boxes(uid, network=network)
        ]
    except OSError as e:
        return [_failed("sandbox", f"no box can be tried: {e.strerror}", here, otherwise=_BOX_FIX)]


def _cgroup(here: Surroundings) -> list[Finding]:
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
        cause = cgroup_cause(here)
        return [Finding("cgroup", ok=False, required=True, detail=f"{brief(str(e))} ({cause.why})", fix=cause.fix)]
    return [Finding("cgroup", ok=True, required=True, detail="pauses and ends commands"), _limits(limits)]


def _limits(limits: Limits) -> Finding:
    if limits.obstacle is None:
        return Finding("limits", ok=True, required=False, detail="memory and processes of commands are limited")
    fix = "start the service in a control group of its own: in a container, or by systemd-run --scope -p Delegate=yes"
    return Finding("limits", ok=False, required=False, detail=f"not all in force: {limits.obstacle}", fix=fix)


def _drivers(data_dir: Path, here: Surroundings) -> list[Finding]:
    obstacles = available(data_dir / "node" / "driver")
    any_works = any(obstacle is None for obstacle in obstacles.values())
    return [
        Finding(f"driver {driver}", ok=True, required=not any_works, detail="mounts")
        if obstacle is None
        else _failed(f"driver {driver}", obstacle, here, required=not any_works, otherwise=None)
        for driver, obstacle in obstacles.items()
    ]
