"""The box: the namespaces in which a sandbox's commands, and the tools that work on its files, run.

A box is two bubblewraps, one inside the other. The outer one starts as root, because only root can reach the
sandbox's files. It shows the inner one only the system's files (/usr, /etc, /dev, /proc) and those of the sandbox, and
drops to the sandbox's uid. The inner one is unprivileged: new namespaces of every kind, no capabilities, a seccomp
filter, no further user namespaces. Both get their options, and the environment, through file descriptors, so that no
process list, the node's or the sandbox's, shows a path or a variable.

Between the two, the process enters the sandbox's own user namespace, so no other sandbox shares its limits per user.

Identities:
    command   uid 1000 inside, the sandbox's uid outside; no capability.
    reader    uid 0 inside, the sandbox's uid outside. May read files of any mode, but only this sandbox's,
              because no other user is mapped. For mksquashfs and tar.
    keeper    outer box only: real root with only the capabilities over files, and only the system's files and
              the bound folders in sight. For unsquashfs of archives that this service has made. If the sandbox has
              a user of its own, it is root of the sandbox's user namespace instead, which maps the files' owners.

Source: bwrap(1) 0.8, which leaves the security policy to its caller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from actors.node import seccomp
from actors.node.user_namespace import UserNamespace

INNER_ID = 1000
HOME = "/home/sandbox"
_PASSWD = f"root:x:0:0:root:/root:/bin/sh\nsandbox:x:{INNER_ID}:{INNER_ID}:sandbox:{HOME}:/bin/bash\n"
_GROUP = f"root:x:0:\nsandbox:x:{INNER_ID}:\n"
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
_ETC = (
    "alternatives",
    "ca-certificates",
    "ssl",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
)
_NETWORK_ETC = ("resolv.conf", "nsswitch.conf", "gai.conf", "services", "protocols")
_READER_CAPS = ("CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE", "CAP_FOWNER")
_KEEPER_CAPS = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD")
_ALONE = ("unshare", "--net", "--")
"""Gives the keeper a network namespace in which no interface is up. bwrap's own `--unshare-net` brings the loopback
interface up, and so needs CAP_NET_ADMIN, which few containers have. Source: bubblewrap 0.8, network.c."""
_OUTER = "/sandbox"
_TERMINALS = f"{_OUTER}/pts"
_WITH_TERMINALS = f'mount -t devpts -o newinstance,ptmxmode=0666,mode=620,max=64 devpts {_TERMINALS} && exec "$@"'
"""Shell program that mounts a devpts of at most 64 pseudo-terminals for a command's box, then executes its arguments.

With bwrap's own `--dev` one box could take all pseudo-terminals that the machine has for boxes: kernel.pty.max less
kernel.pty.reserve, which is 3,072 by default. Source: Documentation/filesystems/devpts.rst.
"""
_PROCESS_1 = ("unshare", "--fork")
"""The first process of the outer box's pid namespace: it waits for the command, and ends with its status.

bwrap's own first process would be left to process 1 of the machine or container, and a container's often reaps nothing.
With `--as-pid-1` this one takes its place: bwrap waits for it, and the kernel reaps the rest of the namespace.
"""
_STATUS_BYTES = 65_536


class Identity(StrEnum):
    """The user and capabilities with which a command runs in the box; see the module."""

    COMMAND = "command"
    READER = "reader"
    KEEPER = "keeper"


@dataclass(frozen=True, slots=True)
class Bind:
    """A folder or file of the node, and the path at which the box shows it."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Box:
    """The settings that all boxes of one sandbox share."""

    uid: int
    hostname: str
    binds: tuple[Bind, ...]
    network: bool = False
    user_namespace: UserNamespace | None = None
    """The sandbox's user namespace; None is the node's own. The keeper enters it only to give files to an own user."""

    @property
    def user(self) -> int:
        """The user that its processes run as, as the node sees it, except for the keeper. In the box it is `uid`."""
        return self.uid if self.user_namespace is None else self.user_namespace.user


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command: a few defaults, which `extra` overrides."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "HOME": HOME,
        "USER": "sandbox",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        **extra,
    }


def _system() -> list[str]:
    args = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            args += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            args += ["--ro-bind", str(path), str(path)]
    return args


def outer(binds: Sequence[Bind]) -> list[str]:
    """The outer box's options, for its `--args` descriptor.

    The pid namespace ensures the end: when the actor dies, so does the namespace's first process, and with it all that
    runs inside. `--die-with-parent` alone would not do: the inner processes have another uid, which the outer bwrap may
    not signal.

    The first process mounts its namespace's /proc over the caller's, which is bound here. The caller's cannot stay,
    because it shows other processes under the pids that the inner bwrap uses. It cannot be left out either: in a user
    namespace, as in some containers, the kernel mounts a new /proc only where another one is visible. bwrap's `--proc`
    covers parts of what it mounts, and then the kernel lets no user namespace inside mount a whole one.
    Source: mount_too_revealing in fs/namespace.c.
    """
    args = [
        "--die-with-parent",
        "--unshare-ipc",
        "--unshare-pid",
        "--as-pid-1",
        *_system(),
        "--ro-bind",
        "/etc",
        "/etc",
    ]
    args += [
        "--bind",
        "/proc",
        "/proc",
        "--dev-bind",
        "/dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--dir",
        _OUTER,
        "--dir",
        _TERMINALS,
    ]
    for number, bind in enumerate(binds):
        args += ["--bind" if bind.writable else "--ro-bind", str(bind.source), f"{_OUTER}/{number}"]
    return [*args, "--chdir", "/"]


def drop_to(uid: int) -> list[str]:
    """The command that becomes the unprivileged `uid` for good, then executes its arguments."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--"]


def entering(user_namespace: int) -> list[str]:
    """The command that enters a user namespace, given as a descriptor, then executes its arguments."""
    return ["nsenter", f"--user=/proc/self/fd/{user_namespace}", "--"]


def inner(
    box: Box, binds: Sequence[Bind], *, identity: Identity, cwd: str, env: Mapping[str, str], fds: Mapping[str, int]
) -> list[str]:
    """The inner box's options, for its `--args` descriptor. `fds` are those of seccomp, passwd, group and hosts."""
    uid = str(INNER_ID if identity is Identity.COMMAND else 0)
    args = ["--unshare-all", "--unshare-user", "--disable-userns", "--uid", uid, "--gid", uid, "--cap-drop", "ALL"]
    if identity is Identity.READER:
        for capability in _READER_CAPS:
            args += ["--cap-add", capability]
    if box.network and identity is Identity.COMMAND:
        args.append("--share-net")
    args += ["--new-session", "--die-with-parent", "--hostname", box.hostname, "--clearenv"]
    for name, value in environment(env).items():
        args += ["--setenv", name, value]
    args += [*_system(), "--dir", "/etc"]
    for name in _ETC + (_NETWORK_ETC if box.network else ()):
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name in ("passwd", "group", "hosts"):
        args += ["--perms", "0444", "--ro-bind-data", str(fds[name]), f"/etc/{name}"]
    args += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run"]
    if identity is Identity.COMMAND:
        args += ["--dev-bind", _TERMINALS, "/dev/pts"]
    for number, bind in enumerate(binds):
        args += ["--bind" if bind.writable else "--ro-bind", f"{_OUTER}/{number}", bind.target]
    # Else a command could lower its oom_score_adj. It needs to write no other file in /proc.
    args += ["--remount-ro", "/proc"]
    return [*args, "--remount-ro", "/", "--chdir", cwd, "--seccomp", str(fds["seccomp"])]


def keeping_in(user_namespace: int) -> list[str]:
    """The command that enters a user namespace as its root, with the keeper's capabilities, and executes its arguments.

    There the keeper gives a file to the sandboxes' user, and so to the sandbox's own one.
    """
    kept = ",".join(f"+{capability.removeprefix('CAP_').lower()}" for capability in _KEEPER_CAPS)
    return [*entering(user_namespace), "setpriv", f"--bounding-set=-all,{kept}", "--"]


def keeper(binds: Sequence[Bind], *, cwd: str, enters: bool = False) -> list[str]:
    """The keeper's options, for its `--args` descriptor. Its network namespace comes from `_ALONE`.

    `enters` gives it the capability to enter a user namespace, which `keeping_in` drops again.
    The command itself is the first process of the pid namespace: it is a tool of ours that starts no children.
    """
    args = ["--die-with-parent", "--new-session", "--as-pid-1"]
    args += [f"--unshare-{namespace}" for namespace in ("ipc", "pid", "uts", "cgroup")]
    args += ["--cap-drop", "ALL"]
    for capability in (*_KEEPER_CAPS, *(("CAP_SYS_ADMIN",) if enters else ())):
        args += ["--cap-add", capability]
    args += [*_system(), "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for bind in binds:
        args += ["--bind" if bind.writable else "--ro-bind", str(bind.source), bind.target]
    return [*args, "--remount-ro", "/", "--chdir", cwd]


@dataclass(frozen=True, slots=True)
class Boxed:
    """A boxed command, ready to be started: its argv, and the descriptors that it must inherit.

    `status`, if requested, is a pipe from which `ran` tells, once the box has ended, whether the command ran.
    """

    argv: list[str]
    fds: tuple[int, ...]
    status: IO[bytes] | None = None


@contextmanager
def boxed(
    box: Box,
    command: Sequence[str],
    *,
    identity: Identity = Identity.COMMAND,
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    binds: Sequence[Bind] = (),
    with_status: bool = False,
) -> Iterator[Boxed]:
    """Prepares a command to be started in the box, within the block.

    Args:
        binds: folders or files that only this command sees, besides the box's own.
        with_status: provide `Boxed.status`, which the caller then closes.
    """
    every = (*box.binds, *binds)
    if identity is Identity.KEEPER:
        owners = None if box.user_namespace is None else box.user_namespace.mapping()
        with _status_pipe(with_status) as (status, told):
            options = [*keeper(every, cwd=cwd, enters=owners is not None), *_told_to(told)]
            with _memory_files({"keeper": _packed(options)}) as fds:
                entered = [] if owners is None else keeping_in(owners)
                argv = [*_ALONE, "bwrap", "--args", str(fds["keeper"]), "--", *entered, *command]
                yield Boxed(argv, _passed([told, owners], fds), status)
        return
    files = {
        "seccomp": seccomp.program(),
        "passwd": _PASSWD.encode(),
        "group": _GROUP.encode(),
        "hosts": _HOSTS.encode(),
        "outer": _packed(outer(every)),
    }
    namespace = None if box.user_namespace is None else box.user_namespace.fd()
    with _memory_files(files) as fds, _status_pipe(with_status) as (status, told):
        options = inner(box, every, identity=identity, cwd=cwd, env=env or {}, fds=fds)
        options += _told_to(told)
        if namespace is not None:
            options += ["--sync-fd", str(namespace)]  # bwrap closes it before it runs the command
        with _memory_files({"inner": _packed(options)}) as more:
            argv = ["bwrap", "--args", str(fds["outer"]), "--", *_PROCESS_1, "--mount-proc", "--"]
            if identity is Identity.COMMAND:
                argv += ["sh", "-c", _WITH_TERMINALS, "terminals"]
            if namespace is not None:
                argv += entering(namespace)
            argv += [*drop_to(box.uid), "bwrap", "--args", str(more["inner"]), "--", *command]
            yield Boxed(argv, _passed([told, namespace], fds, more), status)


def ran(status: IO[bytes]) -> bool:
    """Tells whether the command of an ended box ran. If not, the box could not be built."""
    return b'"exit-code"' in status.read(_STATUS_BYTES)


def _told_to(told: int | None) -> list[str]:
    return [] if told is None else ["--json-status-fd", str(told)]


def _passed(others: Sequence[int | None], *files: Mapping[str, int]) -> tuple[int, ...]:
    """The descriptors that a box inherits: those of the files, and those of `others` that are not None."""
    return (*(fd for each in files for fd in each.values()), *(fd for fd in others if fd is not None))


@contextmanager
def _status_pipe(wanted: bool) -> Iterator[tuple[IO[bytes] | None, int | None]]:
    if not wanted:
        yield None, None
        return
    reading, told = os.pipe()
    status = os.fdopen(reading, "rb")
    try:
        yield status, told
    except BaseException:
        status.close()
        raise
    finally:
        os.close(told)


def _packed(options: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(option) + b"\0" for option in options)


@contextmanager
def _memory_files(contents: Mapping[str, bytes]) -> Iterator[dict[str, int]]:
    fds: dict[str, int] = {}
    try:
        for name, data in contents.items():
            fds[name] = os.memfd_create(name)
            view = memoryview(data)
            while view:
                view = view[os.write(fds[name], view) :]
            os.lseek(fds[name], 0, os.SEEK_SET)
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)
