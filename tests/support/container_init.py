"""The first process of a test's container: prepares it, drops privileges, and starts the command.

`tests.support.container` runs it as real root in a mount namespace of its own. Its one argument is the container, in
JSON. It makes the other namespaces as container runtimes do: first the user namespace, then those that belong to it.
If the command is not process 1 itself, process 1 waits for the command only, and reaps no orphans.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import platform
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET, _NEWCGROUP = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x2000000,
)  # fmt: skip
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _SECCOMP_FILTER = 1, 22, 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _MOVE_FROM_EMPTY, _MOUNT_ATTR_IDMAP, _AT_EMPTY_PATH, _AT_FDCWD = 1, 4, 0x100000, 0x1000, -100
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_MASKED_FOLDERS = ("acpi", "asound", "scsi")
_MASKED_FILES = ("kcore", "keys", "latency_stats", "timer_list", "sched_debug")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
"""Source: moby's oci/defaults.go, MaskedPaths and ReadonlyPaths."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: str | Path, kind: str, flags: int = 0, data: str = "") -> None:
    words = (source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _check(_libc.mount(*words), f"mount {kind} {target}")


def _bind(source: str | Path, target: Path, *, read_only: bool = False) -> None:
    if Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(os.fspath(source), target, "", _MS_BIND | _MS_REC)
    if read_only:
        _mount("", target, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _bind_mapped(source: str, target: Path, wanted: dict[str, Any]) -> None:
    """Binds with the owners mapped into the container's user namespace: 0 stays 0. Source: mount_setattr(2)."""
    if not wanted["first_id"]:
        _bind(source, target)
        return
    target.mkdir(parents=True, exist_ok=True)
    tree = _libc.syscall(_OPEN_TREE, -1, source.encode(), _OPEN_TREE_CLONE)
    _check(0 if tree >= 0 else -1, f"open_tree {source}")
    with _user_namespace(wanted["first_id"], wanted["ids"]) as namespace:
        attributes = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
        _check(_libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes)), "mount_setattr")
    _check(_libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_FROM_EMPTY), "move_mount")
    os.close(tree)


@contextlib.contextmanager
def _user_namespace(first: int, count: int) -> Iterator[int]:
    """A file descriptor of a user namespace with this mapping, open within the block."""
    ended, end = os.pipe()
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        _unshare(_NEWUSER)
        os.write(told, b"x")
        os.read(ended, 1)
        os._exit(0)
    os.read(ready, 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{name}").write_text(f"0 {first} {count}")
    namespace = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
    try:
        yield namespace
    finally:
        os.close(namespace)
        os.close(end)
        os.waitpid(child, 0)


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def prepare(wanted: dict[str, Any]) -> Path:
    """Makes the root file system, as real root: an overlay over a tree, the data folder, the devices."""
    scratch = Path(wanted["scratch"])
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", scratch, "tmpfs", 0, "size=4g,mode=755")
    upper, work, root = scratch / "upper", scratch / "work", scratch / "root"
    for folder in (upper, work, root):
        folder.mkdir()
        os.chown(folder, wanted["first_id"], wanted["first_id"])
    lower = wanted["tree"]
    if wanted["first_id"]:
        lower = str(scratch / "lower")
        _bind_mapped(wanted["tree"], Path(lower), wanted)
    _mount("overlay", root, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")
    _mount("tmpfs", root / "tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    _mount("tmpfs", root / "run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    for source, target in wanted["binds"]:
        _bind_mapped(source, root / target.lstrip("/"), wanted)
    for made in wanted["folders"]:
        folder = root / made.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, wanted["first_id"], wanted["first_id"])
    _devices(root / "dev", wanted)
    return root


def _devices(dev: Path, wanted: dict[str, Any]) -> None:
    if wanted["host_devices"]:
        _mount("/dev", dev, "", _MS_BIND | _MS_REC)
        return
    _mount("tmpfs", dev, "tmpfs", _MS_NOSUID, "mode=755,size=64k")
    for name in (*_DEVICES, *wanted["devices"]):
        found = os.stat(f"/dev/{name}")
        os.mknod(dev / name, stat.S_IFMT(found.st_mode), found.st_rdev)
        os.chmod(dev / name, 0o666)
    for name in ("pts", "shm", "mqueue"):
        (dev / name).mkdir()
    for name, target in {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0",
                         "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}.items():  # fmt: skip
        (dev / name).symlink_to(target)


def enter(wanted: dict[str, Any], root: Path) -> None:
    """Makes the namespaces. This process's children are in the new pid namespace."""
    for group in wanted["cgroups"]:
        Path(group, "cgroup.procs").write_text("0")
    if wanted["first_id"]:
        _enter_user_namespace(wanted["first_id"], wanted["ids"])
    _unshare(_NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET | _NEWCGROUP)
    socket.sethostname("container")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", _IFF_UP, b""))


def _enter_user_namespace(first: int, count: int) -> None:
    ready, told = os.pipe()
    pid = os.getpid()
    mapper = os.fork()
    if mapper == 0:
        os.read(ready, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {first} {count}")
        os._exit(0)
    _unshare(_NEWUSER)
    os.write(told, b"x")
    _, status = os.waitpid(mapper, 0)
    if status != 0:
        raise SystemExit("the user namespace could not be mapped")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def settle(wanted: dict[str, Any], root: Path) -> None:
    """Mounts /proc, /sys and the control groups in process 1, and pivots to the new root."""
    if not wanted["host_devices"]:
        _mount("devpts", root / "dev/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
        _mount("tmpfs", root / "dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777,size=64m")
    _mount("proc", root / "proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    system = 0 if wanted["privileged"] else _MS_RDONLY
    _mount("sysfs", root / "sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | system)
    _control_groups(root / "sys/fs/cgroup", wanted)
    if wanted["masked"]:
        _mask(root / "proc")
    _mount(str(root), root, "", _MS_BIND | _MS_REC)
    os.chdir(root)
    _check(_libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


def _control_groups(place: Path, wanted: dict[str, Any]) -> None:
    """Mounts the control groups: cgroup v2 alone or, on a hybrid machine, beside the controllers of cgroup v1."""
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    access = 0 if wanted["cgroup_writable"] else _MS_RDONLY
    version_2 = place
    if wanted["controllers"]:
        _mount("tmpfs", place, "tmpfs", flags, "mode=755")
        version_2 = place / "unified"
        for folder in (version_2, *(place / name for name in wanted["controllers"])):
            folder.mkdir()
        for name in wanted["controllers"]:
            _mount("cgroup", place / name, "cgroup", flags | access, name)
        _mount("", place, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | flags)
    _mount("cgroup2", version_2, "cgroup2", flags | access)


def _mask(proc: Path) -> None:
    for name in _MASKED_FOLDERS:
        if (proc / name).is_dir():
            _mount("tmpfs", proc / name, "tmpfs", _MS_RDONLY)
    for name in _MASKED_FILES:
        if (proc / name).is_file():
            _mount("/dev/null", proc / name, "", _MS_BIND)
    for name in _READ_ONLY:
        if (proc / name).exists():
            _mount(str(proc / name), proc / name, "", _MS_BIND | _MS_REC)
            _mount("", proc / name, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def filter_calls(program: bytes) -> None:
    """Loads a seccomp filter. Before privileges are dropped, since afterwards it would need no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    loaded = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(loaded), 0, 0), "seccomp")


def start(wanted: dict[str, Any]) -> None:
    """Replaces this process with the command or, as process 1, waits for the command only."""
    argv = [*wanted["privileges"], *wanted["argv"]]
    os.chdir(wanted["folder_of_work"])
    if wanted["seccomp"]:
        filter_calls(bytes.fromhex(wanted["seccomp"]))
    if wanted["as_init"]:
        os.execvpe(argv[0], argv, wanted["environment"])
    command = subprocess.Popen(argv, env=wanted["environment"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: command.send_signal(number))
    sys.exit(command.wait())


def main() -> None:
    """Runs the container to its end, and exits with the command's status."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    wanted = json.loads(sys.argv[1])
    root = prepare(wanted)
    enter(wanted, root)
    first = os.fork()
    if first == 0:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        settle(wanted, root)
        start(wanted)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(first, number))
    _, status = os.waitpid(first, 0)
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
