"""Connects to an address, and prints whether it could. Runs in a sandbox."""

from __future__ import annotations

import socket
import sys

with socket.socket() as client:
    client.settimeout(3)
    try:
        client.connect((sys.argv[1], int(sys.argv[2])))
    except OSError as e:
        print("refused", type(e).__name__)
    else:
        print("connected")
