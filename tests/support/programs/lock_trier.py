"""Tries to take a sandbox lock."""

from __future__ import annotations

import sys
from pathlib import Path

from actors.node.errors import MountBusyError
from actors.sandbox.sandbox_lock import SandboxLock

try:
    SandboxLock(Path(sys.argv[1])).claim(wait_s=0.1)
except MountBusyError:
    print("busy")
else:
    print("taken")
