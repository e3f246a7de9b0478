"""Ports for servers that have to be told theirs."""

from __future__ import annotations

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """A free port below those that the kernel gives to clients, and above those that Ray gives to its workers.

    So nobody but another test takes it before the server does.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
