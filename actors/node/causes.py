"""Finds the cause of an error message of the node's tools (container, privileges, kernel), and names the fix.

`_ROWS` is the table of known causes. A row has words of the error message, a condition on the surroundings, the cause
and the fix: an option of `docker run`, a line of a pod's manifest, or a command on a machine. The first row that fits
explains the failure.

Source: capabilities(7), user_namespaces(7); Docker's run reference and default profiles; the security contexts of
Kubernetes; mount_too_revealing in fs/namespace.c. The container tests make each failure happen.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from actors.node.surroundings import Surroundings

_DENIED = ("not permitted", "permission denied", "superuser", "no permissions", "eperm", "eacces")
_SHOWN_CHARACTERS = 160
_ESCAPED_NEWLINE = "\\n"
_OWN_PATH = re.compile(r"/\S*/([^/\s:]+)")
_LONG_HEX = re.compile(r"[0-9a-f]{32,}")

USES = {
    "SYS_ADMIN": "mounts, and a box for each command",
    "NET_ADMIN": "the boxes' own networks",
    "CHOWN": "sandboxes' files",
    "DAC_OVERRIDE": "sandboxes' files",
    "FOWNER": "sandboxes' files",
    "SETUID": "becoming the sandboxes' user",
    "SETGID": "becoming the sandboxes' user",
    "KILL": "ending commands",
}
"""The capabilities that the service needs, and the use of each."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The cause of a failure, in a short sentence without a full stop, and the fix."""

    why: str
    fix: str


@dataclass(frozen=True, slots=True)
class _Row:
    words: tuple[str, ...]
    """The error message contains one of these, in lower case."""
    when: Callable[[Surroundings], bool]
    cause: Cause


def option(docker: str, pod: str, machine: str | None = None) -> str:
    """The text of a fix, for each place in which the service may run."""
    return f"docker run {docker}; in a pod: {pod}{f'; on a machine: {machine}' if machine else ''}"


def lacking(*names: str) -> Cause:
    """The cause for missing capabilities."""
    return Cause(
        f"this process lacks {', '.join(f'CAP_{name}' for name in names)}",
        option(
            " ".join(f"--cap-add {name}" for name in names),
            f"securityContext.capabilities.add: [{', '.join(names)}]",
        ),
    )


def _lacks(name: str) -> Callable[[Surroundings], bool]:
    return lambda here: name in here.missing


def _always(here: Surroundings) -> bool:
    return True


NOT_ROOT = Cause("it does not run as root", option("--user 0", "securityContext.runAsUser: 0", "sudo"))
NO_FUSE = Cause(
    "/dev/fuse is missing or closed",
    option(
        "--device /dev/fuse",
        "a device plugin for /dev/fuse, or a hostPath of it with privileged: true",
        "modprobe fuse",
    ),
)
FULL = Cause("the disk is full", "make room on the disks of the data folder and of /tmp")
NO_LOOP = Cause(
    "there are no loop devices",
    option("--privileged -v /dev:/dev", "privileged: true, and a hostPath of /dev", "modprobe loop"),
)
_PROC = Cause(
    "parts of the container's /proc are masked, so the kernel refuses to mount a new one",
    option(
        "--security-opt systempaths=unconfined",
        "securityContext.procMount: Unmasked with hostUsers: false, or privileged: true",
    ),
)
_SECCOMP = Cause(
    "a seccomp filter denies mount or unshare",
    option("--security-opt seccomp=unconfined", "securityContext.seccompProfile: {type: Unconfined}"),
)
_APPARMOR = Cause(
    "an AppArmor profile denies mounts",
    option(
        "--security-opt apparmor=unconfined",
        "securityContext.appArmorProfile: {type: Unconfined}",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
_DATA_FOLDER = Cause(
    "the data folder is on a file system that cannot hold an overlay's upper directory",
    option(
        "-v VOLUME:/var/lib/holdfast, on ext4 or xfs",
        "a volume at /var/lib/holdfast, on ext4 or xfs",
        "--data-dir on ext4 or xfs",
    ),
)
_NO_NAMESPACES = Cause("user namespaces are switched off on this machine", "sysctl user.max_user_namespaces=65536")
_NESTED = Cause(
    "the kernel mounts neither squashfs nor such an overlay in a user namespace",
    "nothing to change: the driver `rootless` is the one for user namespaces",
)
_UNMAPPED = Cause(
    "the sandboxes' user does not exist in this user namespace",
    "map 65536 users into the namespace, or set HOLDFAST_SANDBOX_UID to one that is mapped",
)
_PROCESSES = Cause(
    "the limit of processes is reached",
    option("--pids-limit 16384", "podPidsLimit in the kubelet's configuration", "ulimit -u 65536"),
)
_MEMORY = Cause("memory is short", option("--memory 4g", "resources.limits.memory: 4Gi", "add memory"))

_ROWS = (
    _Row(("no space left on device", "disk quota exceeded"), _always, FULL),
    _Row((*_DENIED, "setresuid", "setresgid", "setgroups"), lambda here: not here.root, NOT_ROOT),
    _Row(("setresuid failed: invalid", "setresgid failed: invalid"), lambda here: here.user_namespace, _UNMAPPED),
    _Row(("rtm_newaddr", "loopback", "rtnetlink"), _lacks("NET_ADMIN"), lacking("NET_ADMIN")),
    _Row(("setgroups", "setresgid", "setgid"), _lacks("SETGID"), lacking("SETGID")),
    _Row(("setresuid", "setuid", "setreuid"), _lacks("SETUID"), lacking("SETUID")),
    _Row(("chown",), _lacks("CHOWN"), lacking("CHOWN")),
    _Row((*_DENIED, "namespace"), _lacks("SYS_ADMIN"), lacking("SYS_ADMIN")),
    _Row(("mount proc",), _always, _PROC),
    _Row(("fuse",), lambda here: not here.fuse, NO_FUSE),
    _Row(("loop",), lambda here: not here.loop, NO_LOOP),
    _Row(("namespace",), lambda here: here.userns_limit == 0, _NO_NAMESPACES),
    _Row(_DENIED, lambda here: here.seccomp, _SECCOMP),
    _Row(_DENIED, lambda here: here.apparmor is not None, _APPARMOR),
    _Row(_DENIED, _lacks("DAC_OVERRIDE"), lacking("DAC_OVERRIDE")),
    _Row(_DENIED, _lacks("FOWNER"), lacking("FOWNER")),
    _Row(_DENIED, lambda here: here.user_namespace, _NESTED),
    _Row(
        ("overlay", "wrong fs type", "invalid argument", "upper"),
        lambda here: here.file_system in ("overlay", "fuse", "nfs", "nfs4", "9p", "virtiofs"),
        _DATA_FOLDER,
    ),
    _Row(("resource temporarily unavailable", "cannot fork", "can't fork"), _always, _PROCESSES),
    _Row(("cannot allocate memory",), _always, _MEMORY),
)


def explain(failure: str, here: Surroundings) -> Cause | None:
    """Returns the cause of a failure (an error message), or None if it is unknown."""
    said = failure.lower()
    return next((row.cause for row in _ROWS if row.when(here) and any(word in said for word in row.words)), None)


def foreseen(here: Surroundings) -> list[tuple[str, Cause]]:
    """Names and causes of all obstacles that the surroundings show. For a process that is not root and cannot try."""
    said = [
        (here.masked_proc, "proc", _PROC),
        (here.cgroup != "rw", "cgroup", cgroup_cause(here)),
        (not here.fuse, "fuse", NO_FUSE),
        (not here.loop, "loop", NO_LOOP),
        (here.seccomp, "seccomp", _SECCOMP),
        (here.apparmor is not None, "apparmor", _APPARMOR),
    ]
    return [(name, cause) for holds, name, cause in said if holds]


def cgroup_cause(here: Surroundings) -> Cause:
    """The cause why no control groups can be made here."""
    if here.cgroup is None:
        return Cause("no cgroup v2 is mounted", f"mount -t cgroup2 none {here.cgroup_point}")
    if here.cgroup == "ro":
        return Cause(
            "cgroup v2 is mounted read-only",
            f"mount -o remount,bind,rw {here.cgroup_point}, before the service starts and with CAP_SYS_ADMIN; or "
            + option("--security-opt writable-cgroups=true", "privileged: true"),
        )
    if not here.root:
        return NOT_ROOT
    if here.user_namespace:
        return Cause(
            "this control group belongs to a user outside of this user namespace",
            "have the container's runtime delegate the control group: chown it to the namespace's root",
        )
    return Cause("cgroup v2 refuses new groups", f"look at cgroup.type and cgroup.max.* in {here.cgroup_point}")


def brief(failure: str) -> str:
    """A tool's error message as one short line: only the last part of each path, and no long digests."""
    first, _, _ = failure.partition(_ESCAPED_NEWLINE)
    line = " ".join(_LONG_HEX.sub("…", _OWN_PATH.sub(r"\1", first)).split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
