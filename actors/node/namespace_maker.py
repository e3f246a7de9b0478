"""A program that makes a user namespace and hands over a descriptor of it; `user_namespace.py` starts it as root.

It is a separate program because only a process with a single thread may make a user namespace for itself. It sends a
descriptor because another process could open the namespace only with CAP_SYS_PTRACE, which few containers have. It
imports no module of this project.

Its argument is the user that is to own the namespace. Its standard input is a socket, over which it sends the
descriptor. It keeps the namespace until the other end of the socket is closed. Source: unshare(2), user_namespaces(7),
unix(7).
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys

_CLONE_NEWUSER = 0x10000000


def main(owner: int) -> None:
    """Becomes the user `owner`, which has no capability, and makes the namespace. Raises OSError."""
    os.setgroups([])
    os.setresgid(owner, owner, owner)
    os.setresuid(owner, owner, owner)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    with socket.socket(fileno=0) as asker:
        namespace = os.open("/proc/self/ns/user", os.O_RDONLY)
        socket.send_fds(asker, [b"made"], [namespace])
        asker.recv(1)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except OSError as e:
        sys.exit(f"no user namespace: {e.strerror}")
