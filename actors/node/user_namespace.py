"""A user namespace for each sandbox, in which its boxes are built, so that it has the kernel's limits per user alone.

The commands of all sandboxes run as one user of the node. So all of them would share what the kernel limits for each
user (inotify, pending signals and timers, message queues): a sandbox that holds 128 inotify instances would leave the
others none. But the kernel charges what happens in a user namespace to the user who made it. So each sandbox has a
namespace made by a user of its own, who owns no file and runs nothing else. Files keep their owner, since the
sandboxes' user is mapped to itself.

Some limits are still shared by all sandboxes of a node: descriptors on their way through sockets, memory of pipes, and
the files that epoll watches. The kernel counts those by the user that a process runs as.

Source: user_namespaces(7); kernel/ucount.c (`inc_ucount`, `inc_rlimit_ucounts`); too_many_unix_fds in
net/core/scm.c, too_many_pipe_buffers in fs/pipe.c, and fs/eventpoll.c for those still shared.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Self

from actors.node import namespace_maker, process
from actors.node.errors import NodeError

OWNERS = range(61_184, 65_520)
"""The users that make the namespaces, one for each sandbox. Others have them only briefly, and containers have them.

Source: systemd's list of users and groups, the range of `DynamicUser=`.
"""
_MADE_S = 10.0


class UserNamespace:
    """The user namespace of one sandbox: made at its first use, and kept until it is closed."""

    def __init__(self, owners: Path, uid: int, *, on_obstacle: Callable[[str], None] = lambda reason: None) -> None:
        """`owners` is a folder of the node, with a lock file for each owner; `uid` is the user of all sandboxes.

        `on_obstacle` is called with the reason if no namespace can be made.
        """
        self._owners = owners
        self._uid = uid
        self._on_obstacle = on_obstacle
        self._lock = threading.Lock()
        self._owner_lock: int | None = None
        self._maker: _Maker | None = None
        self._fd: int | None = None
        self.obstacle: str | None = None
        """The reason why there is no namespace, once one was asked for and could not be made."""

    def start(self) -> None:
        """Begins to make the namespace, so that the first `fd` waits less."""
        with self._lock:
            self._start()

    def fd(self) -> int | None:
        """A descriptor of the namespace; None if none can be made.

        Sandboxes work without it, and then share the limits.
        """
        with self._lock:
            self._start()
            if self._maker is not None:
                maker, self._maker = self._maker, None
                with self._or_without(), maker:
                    self._fd = maker.namespace(self._uid)
            return self._fd

    def close(self) -> None:
        """Releases the namespace and its owner. Processes in the namespace keep it; the next `fd` makes another one."""
        with self._lock:
            self._release()
            self.obstacle = None

    def _start(self) -> None:
        if self._owner_lock is None and self.obstacle is None:
            with self._or_without():
                self._maker = _Maker(self._claim_owner())

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except (NodeError, OSError) as e:
            self._release()
            self.obstacle = str(e)
            self._on_obstacle(self.obstacle)

    def _release(self) -> None:
        if self._maker is not None:
            self._maker.close()
        for fd in (self._fd, self._owner_lock):
            if fd is not None:
                os.close(fd)
        self._maker = self._fd = self._owner_lock = None

    def _claim_owner(self) -> int:
        """Locks an owner that no other sandbox of this node has.

        Other nodes may share the kernel, so the search begins at random.
        """
        self._owners.mkdir(parents=True, exist_ok=True, mode=0o700)
        first = random.randrange(len(OWNERS))
        for owner in chain(OWNERS[first:], OWNERS[:first]):
            if owner == self._uid:
                continue
            fd = os.open(self._owners / str(owner), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            self._owner_lock = fd
            return owner
        raise OSError(f"All {len(OWNERS)} users for them are taken.")


class _Maker:
    """A running `namespace_maker`. `close` ends it."""

    def __init__(self, owner: int) -> None:
        """Starts the program. Raises NodeError, OSError."""
        self._owner = owner
        self._socket, given = socket.socketpair()
        argv = [sys.executable, "-I", "-S", namespace_maker.__file__, str(owner)]
        with given, ExitStack() as not_started:
            not_started.enter_context(self._socket)
            self._process = process.start(argv, stdin=given.fileno(), stdout=subprocess.DEVNULL)
            not_started.pop_all()

    def namespace(self, uid: int) -> int:
        """Receives the namespace's descriptor, and maps its owner to user 0 and `uid` to itself. Raises OSError."""
        self._socket.settimeout(_MADE_S)
        _, fds, _, _ = socket.recv_fds(self._socket, 16, 1)
        if not fds:
            assert self._process.stderr is not None
            raise OSError(process.printable(self._process.stderr.read()))
        try:
            os.set_inheritable(fds[0], False)
            for kind in ("uid", "gid"):
                rows = f"0 {self._owner} 1\n{uid} {uid} 1\n"
                Path(f"/proc/{self._process.pid}/{kind}_map").write_text(rows)
        except BaseException:
            os.close(fds[0])
            raise
        return fds[0]

    def close(self) -> None:
        process.kill_group(self._process)
        self._socket.close()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
