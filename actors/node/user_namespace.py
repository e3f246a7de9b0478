"""A user namespace for each sandbox, in which its boxes are built, so that it has the kernel's limits per user alone.

One user owns the files of all sandboxes. If their commands ran as that user, they would share what the kernel limits
for each user: a sandbox that holds 128 inotify instances would leave the others none. The kernel counts in two ways:

    by the user who made the user namespace       inotify, pending signals and timers, message queues
    by the user that the process runs as          descriptors in flight, memory of pipes, files that epoll watches

So each awake sandbox takes a user of its own, who makes the sandbox's namespace. The namespace exchanges that user and
the sandboxes' user, and maps every other one to itself: what enters it and becomes the sandboxes' user is the own one.
Files are shown as the own user's by idmapped mounts with the same mapping (`idmapped.py`).

Where such mounts are refused, the own user only makes the namespace, and the sandboxes' user is mapped to itself. Then
sandboxes share what is counted in the second way.

Source: user_namespaces(7); kernel/ucount.c (`inc_ucount`, `inc_rlimit_ucounts`); too_many_unix_fds in
net/core/scm.c, too_many_pipe_buffers in fs/pipe.c, and fs/eventpoll.c.
"""

from __future__ import annotations

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

from actors.node import file_lock, namespace_maker, process
from actors.node.errors import NodeError

OWNERS = range(61_184, 65_520)
"""The users that make the namespaces, one for each sandbox. Others have them only briefly, and containers have them.

Source: systemd's list of users and groups, the range of `DynamicUser=`.
"""
_MADE_S = 10.0
_ALL = 2**32 - 1
"""The number of users: -1 is none."""


class UserNamespace:
    """The user namespace of one sandbox: made at its first use, and kept until it is closed."""

    def __init__(
        self,
        owners: Path,
        uid: int,
        *,
        sharing: str | None = None,
        on_sharing: Callable[[str], None] = lambda reason: None,
        on_obstacle: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`owners` is a folder of the node, with a lock file for each owner; `uid` is the user of all sandboxes.

        Args:
            sharing: the reason why the sandbox runs as the user of all sandboxes, if it is known beforehand.
            on_sharing: called with the reason if the sandbox runs as the user of all sandboxes.
            on_obstacle: called with the reason if no namespace can be made.
        """
        self._owners = owners
        self._uid = uid
        self._always_sharing = sharing
        self._on_sharing = on_sharing
        self._on_obstacle = on_obstacle
        self._lock = threading.Lock()
        self._owner = uid
        self._owner_lock: int | None = None
        self._maker: _Maker | None = None
        self._fd: int | None = None
        self.obstacle: str | None = None
        """The reason why there is no namespace, once one was asked for and could not be made."""
        self.sharing = sharing
        """The reason why the sandbox runs as the user of all sandboxes, once that is known."""

    def start(self) -> None:
        """Begins to make the namespace, so that the first `fd` waits less."""
        with self._lock:
            self._start()

    def fd(self) -> int | None:
        """A descriptor of the namespace; None if none can be made.

        Sandboxes work without it, and then share the limits.
        """
        with self._lock:
            return self._made()

    def mapping(self) -> int | None:
        """A descriptor of the namespace if it maps the sandboxes' user to one of the sandbox's own; None if not."""
        with self._lock:
            fd = self._made()
            return fd if self.sharing is None else None

    @property
    def user(self) -> int:
        """The user that the sandbox's processes run as: its own, or that of all sandboxes."""
        with self._lock:
            self._made()
            return self._owner if self.sharing is None else self._uid

    def share(self, reason: str) -> None:
        """Has the sandbox run as the user of all sandboxes until `close`. Nothing may run in the namespace."""
        with self._lock:
            if self.sharing is None:
                self._release()
                self._note_sharing(reason)

    def close(self) -> None:
        """Releases the namespace and its owner. Processes in the namespace keep it; the next `fd` makes another one."""
        with self._lock:
            self._release()
            self.obstacle = None
            self.sharing = self._always_sharing

    def _start(self) -> None:
        if self._owner_lock is None and self.obstacle is None:
            with self._or_without():
                self._owner = self._claim_owner()
                self._maker = _Maker(self._owner)
                if self._always_sharing is not None:
                    self._on_sharing(self._always_sharing)

    def _made(self) -> int | None:
        self._start()
        if self._maker is not None:
            maker, self._maker = self._maker, None
            with self._or_without(), maker:
                self._fd = maker.namespace()
                self._map(maker)
        return self._fd

    def _map(self, maker: _Maker) -> None:
        """Maps the namespace's users. Raises OSError."""
        if self.sharing is None:
            try:
                maker.map(exchanging(self._uid, self._owner))
                return
            except OSError as e:  # users are missing in this user namespace, say that of a container
                self._note_sharing(f"The node's users cannot all be mapped: {e.strerror}.")
        maker.map(f"0 {self._owner} 1\n{self._uid} {self._uid} 1\n")

    def _note_sharing(self, reason: str) -> None:
        self.sharing = reason
        self._on_sharing(reason)

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except (NodeError, OSError) as e:
            self._release()
            self.obstacle = str(e)
            self._on_obstacle(self.obstacle)
            if self.sharing is None:
                self._note_sharing(f"It has no user namespace: {self.obstacle}")

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
            if not file_lock.take(fd):
                os.close(fd)
                continue
            self._owner_lock = fd
            return owner
        raise OSError(f"All {len(OWNERS)} users for them are taken.")


class _Maker:
    """A running `namespace_maker`. `close` ends it."""

    def __init__(self, owner: int) -> None:
        """Starts the program. Raises NodeError, OSError."""
        self._socket, given = socket.socketpair()
        argv = [sys.executable, "-I", "-S", namespace_maker.__file__, str(owner)]
        with given, ExitStack() as not_started:
            not_started.enter_context(self._socket)
            self._process = process.start(argv, stdin=given.fileno(), stdout=subprocess.DEVNULL)
            not_started.pop_all()

    def namespace(self) -> int:
        """Receives the namespace's descriptor. Raises OSError."""
        self._socket.settimeout(_MADE_S)
        _, fds, _, _ = socket.recv_fds(self._socket, 16, 1)
        if not fds:
            assert self._process.stderr is not None
            raise OSError(process.printable(self._process.stderr.read()))
        os.set_inheritable(fds[0], False)
        return fds[0]

    def map(self, rows: str) -> None:
        """Maps the namespace's users and groups. Raises OSError."""
        for kind in ("uid", "gid"):
            Path(f"/proc/{self._process.pid}/{kind}_map").write_text(rows)

    def close(self) -> None:
        process.kill_group(self._process)
        self._socket.close()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def exchanging(one: int, other: int) -> str:
    """The rows of a uid_map that exchanges two users and maps every other one to itself. Source: user_namespaces(7)."""
    low, high = sorted((one, other))
    rows = [(0, 0, low), (low, high, 1), (low + 1, low + 1, high - low - 1), (high, low, 1)]
    rows.append((high + 1, high + 1, _ALL - high - 1))
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows if count > 0)
