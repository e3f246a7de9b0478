"""Holds the lock of a file until a line of input comes."""

from __future__ import annotations

import sys
from pathlib import Path

from fasteners import InterProcessLock

lock = InterProcessLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.readline()
