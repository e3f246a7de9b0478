"""Opens as many pseudo-terminals as told, and uses one. Runs in a box."""

from __future__ import annotations

import os
import sys

held = [os.openpty() for _ in range(int(sys.argv[1]))]
os.write(held[0][1], b"to the other side")
print(os.ttyname(held[0][1]), os.read(held[0][0], 100).decode(), os.stat(os.ttyname(held[0][1])).st_uid)
