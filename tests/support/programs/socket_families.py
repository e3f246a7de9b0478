"""Prints each family of sockets that can be opened. Runs in a box."""

from __future__ import annotations

import errno
import socket

for make in (socket.socket, socket.socketpair):
    for family in range(64):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                make(family, kind)
            except OSError as e:
                if e.errno == errno.EAFNOSUPPORT:
                    continue
            print(family)
