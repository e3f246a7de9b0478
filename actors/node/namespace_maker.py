"""A program that makes a user namespace and gives it away; see `user_namespace.py`, which starts it as root.

It is one of its own because only a process of one thread may do so, and because nobody else could open the namespace
without CAP_SYS_PTRACE, which few containers have: so it sends a descriptor of it. It imports no module of this project.

Its argument is the user who is to own the namespace; its standard input is a socket, for the descriptor. It keeps the
namespace until the socket's other end is closed. Source: unshare(2), user_namespaces(7), unix(7).
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys

_CLONE_NEWUSER = 0x10000000


def main(owner: int) -> None:
    """Becomes `owner`, who has no capability, and makes the namespace as that user. Raises OSError."""
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
