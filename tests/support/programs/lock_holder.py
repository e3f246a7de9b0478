"""Holds a sandbox lock until it is told to let it go in some way."""

from __future__ import annotations

import sys
from pathlib import Path

from actors.sandbox.sandbox_lock import SandboxLock

lock = SandboxLock(Path(sys.argv[1]))
lock.claim()
print("held", flush=True)
sys.stdin.readline()
if sys.argv[2] == "for good":
    lock.release(for_good=True)
elif sys.argv[2] == "gives up":
    lock.release()
print("let go", flush=True)
