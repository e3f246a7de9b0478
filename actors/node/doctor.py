"""The examination behind `holdfast doctor` and the start of `serve`: tries what sandboxes need on this machine."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from actors.node import process
from actors.node.box_trials import tried_boxes
from actors.node.causes import FULL, NOT_ROOT, USES, brief, cgroup_cause, explain, foreseen, lacking, option
from actors.node.cgroup import Cgroup, Limits
from actors.node.driver_choice import Verdict, advice, available, scratch_in, verdict
from actors.node.drivers import Driver, Setting
from actors.node.errors import NodeError
from actors.node.idmapped import View, obstacle
from actors.node.surroundings import Surroundings
from actors.node.user_namespace import OWNERS, UserNamespace

PACKAGES = {
    "mksquashfs": "squashfs-tools",
    "unsquashfs": "squashfs-tools",
    "squashfuse_ll": "squashfuse",
    "fuse-overlayfs": "fuse-overlayfs",
    "fusermount3": "fuse3",
    "bwrap": "bubblewrap",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "prlimit": "util-linux",
    "mount": "mount",
    "tar": "tar",
}
_NEEDED_BY_ONE_DRIVER = ("squashfuse_ll", "fuse-overlayfs", "fusermount3")
RESTORES = "restores"
"""Name of the finding that says how backups are restored here."""
_SHARED_MEMORY_BYTES = 600 * 1024**2
"""Room for Ray's object store of 512 MiB, and for the tenth of it that Ray requires in addition."""
_OPEN_FILES = 8192
"""Minimum below which Ray warns that connections may fail. Source: Ray 2.60."""
_BOX_FIX = "allow user namespaces and mounts: sysctl user.max_user_namespaces, and in a container its privileges"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `fix` says what to do if it failed."""

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str | None = None


def examine(
    data_dir: Path, uid: int, *, network: bool = False, driver: Setting = "auto", thorough: bool = True
) -> list[Finding]:
    """Tries everything that sandboxes need on this machine. Leaves only verdicts on mount drivers behind.

    Reports all problems at once, also without root, so that a manifest can be corrected in one go.

    Args:
        network: True if commands are to have the node's network.
        driver: the configured mount driver. If it names one, that driver is required.
        thorough: try every mount driver anew. False tries only drivers that may be chosen and have no verdict yet, up
            to the first that works.
    """
    here = Surroundings.read(data_dir)
    tools = _tools()
    findings = [_root(here), *tools, _capabilities(here), *_room(here)]
    if not here.root:
        findings += [Finding(name, ok=False, required=False, detail=c.why, fix=c.fix) for name, c in foreseen(here)]
    if all(finding.ok for finding in tools if finding.required):
        findings += [*_boxes(uid, here, network=network), *_user_limits(uid, here), *_cgroup(here)]
        findings += _drivers(data_dir, uid, here, driver, thorough=thorough)
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
    """The finding on missing capabilities. None is required: the trials of boxes and drivers show what fails."""
    if not here.missing:
        return Finding("capabilities", ok=True, required=False, detail=f"has all that are needed: {', '.join(USES)}")
    names = sorted(here.missing)
    uses = ", ".join(dict.fromkeys(USES[name] for name in names))
    cause = lacking(*names)
    return Finding("capabilities", ok=False, required=False, detail=f"{cause.why} ({uses})", fix=cause.fix)


def _room(here: Surroundings) -> list[Finding]:
    """Findings on shared memory and open files, which Ray needs and containers often limit."""
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
    """The finding for a failed check: its error message in short, the cause if known, and the fix."""
    cause = explain(failure, here)
    if cause is None:
        return Finding(name, ok=False, required=required, detail=brief(failure), fix=otherwise)
    return Finding(name, ok=False, required=required, detail=f"{brief(failure)} ({cause.why})", fix=cause.fix)


def _boxes(uid: int, here: Surroundings, *, network: bool) -> list[Finding]:
    """One finding for each kind of box, or a single one if none can be tried."""
    try:
        return [
            Finding(tried.trial.name, ok=True, required=True, detail=tried.trial.purpose)
            if tried.obstacle is None
            else _failed(tried.trial.name, tried.obstacle, here, otherwise=_BOX_FIX)
            for tried in tried_boxes(uid, network=network)
        ]
    except OSError as e:
        return [_failed("sandbox", f"no box can be tried: {e.strerror}", here, otherwise=_BOX_FIX)]


def _user_limits(uid: int, here: Surroundings) -> list[Finding]:
    if not here.root:
        return []
    with (
        TemporaryDirectory(prefix="holdfast-doctor-") as owners,
        closing(UserNamespace(Path(owners), uid)) as namespace,
    ):
        if namespace.fd() is not None:
            return [Finding("user limits", ok=True, required=False, detail="each sandbox has the kernel's for itself")]
        fix = f"allow user namespaces, and give a container the users {OWNERS[0]} to {OWNERS[-1]} too"
        why = f"all share them: {namespace.obstacle}"
        return [Finding("user limits", ok=False, required=False, detail=why, fix=fix)]


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
    fix = (
        "start the service in a control group of its own: in a container, or by systemd-run --scope -p Delegate=yes; "
        "and the machine with its controllers in version 2: systemd.unified_cgroup_hierarchy=1"
    )
    return Finding("limits", ok=False, required=False, detail=f"not all in force: {limits.obstacle}", fix=fix)


def _drivers(data_dir: Path, uid: int, here: Surroundings, setting: Setting, *, thorough: bool) -> list[Finding]:
    folder = data_dir / "node" / "driver"
    verdicts = available(folder) if thorough else _until_one_is_offered(folder, setting)
    findings = [line for driver, found in verdicts.items() for line in _driver(driver, found, here, setting)]
    is_full = any(found.obstacle and explain(found.obstacle, here) is FULL for found in verdicts.values())
    offered = [driver for driver, found in verdicts.items() if found.reason is None and setting in ("auto", driver)]
    findings.append(_restores(setting, offered, is_full=is_full))
    return [*findings, *_own_users(folder, uid, here, offered[0] if offered else None)]


def _own_users(folder: Path, uid: int, here: Surroundings, driver: Driver | None) -> list[Finding]:
    """The finding on the users that sandboxes run as, for the node's driver, if it has one."""
    if not here.root:
        return []
    name = "own users"
    try:
        reason = obstacle(driver, os.uname().release) or _refusal(folder, uid)
    except (NodeError, OSError) as e:
        reason = brief(str(e))
    if reason is None:
        return [Finding(name, ok=True, required=False, detail="each awake sandbox runs as a user of its own")]
    fix = (
        "Linux 6.2, the driver kernel, a data folder on ext4 or xfs, CAP_SYS_ADMIN outside of a user namespace, and"
        f" the users {OWNERS[0]} to {OWNERS[-1]}"
    )
    why = f"all share one, and its limits on files in flight, pipes and epoll: {reason}"
    return [Finding(name, ok=False, required=False, detail=why, fix=fix)]


def _refusal(folder: Path, uid: int) -> str | None:
    """Shows a folder in `folder`, or beside it, as another user's. Returns the reason why that is refused, if it is."""
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    with (
        scratch_in(there) as scratch,
        TemporaryDirectory(prefix="holdfast-doctor-") as owners,
        closing(UserNamespace(Path(owners), uid)) as namespace,
    ):
        shown = scratch / "view"
        shown.mkdir()
        view = View(shown, namespace)
        view.mount()
        view.unmount()
        return namespace.sharing


def _until_one_is_offered(folder: Path, setting: Setting) -> dict[Driver, Verdict]:
    verdicts: dict[Driver, Verdict] = {}
    for driver in [] if setting == "none" else list(Driver) if setting == "auto" else [setting]:
        verdicts[driver] = verdict(driver, folder)
        if verdicts[driver].reason is None:
            break
    return verdicts


def _driver(driver: Driver, found: Verdict, here: Surroundings, setting: Setting) -> list[Finding]:
    """One finding for a driver that is offered or cannot mount; else one for each trial that it failed."""
    name, required = f"driver {driver}", driver is setting
    fix = f"{found.reason} {advice(driver)}" if required else None
    if found.failed:
        return [Finding(name, ok=False, required=required, detail=f"refused: {line}", fix=fix) for line in found.failed]
    if found.obstacle is not None:
        return [_failed(name, found.obstacle, here, required=required, otherwise=fix)]
    but = "".join(f"; {limit}" for limit in sorted(driver.limits))
    return [Finding(name, ok=True, required=required, detail=f"mounts, and behaves like a plain directory{but}")]


def _restores(setting: Setting, offered: list[Driver], *, is_full: bool) -> Finding:
    """The finding on restores: as overlays, or as copies if no driver is offered, which is not an error."""
    if setting == "none":
        return Finding(RESTORES, ok=True, required=False, detail="as copies only, as HOLDFAST_DRIVER=none says")
    if offered:
        return Finding(RESTORES, ok=True, required=False, detail=f"as overlays, with the driver {offered[0]}")
    if is_full:
        return Finding(RESTORES, ok=False, required=False, detail=f"as copies only: {FULL.why}", fix=FULL.fix)
    return Finding(
        RESTORES,
        ok=False,
        required=False,
        detail="as copies only: no mount driver is offered here",
        fix="give the node /dev/fuse or loop devices, CAP_SYS_ADMIN, and a data folder on a volume that is no overlay",
    )
