"""Freezes a control group, and kills itself."""

from __future__ import annotations

import os
import signal
import sys

from actors.node.cgroup import Cgroup

group = Cgroup(sys.argv[1], memory_bytes=2**30, processes=100)
with group.frozen():
    print("frozen", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
