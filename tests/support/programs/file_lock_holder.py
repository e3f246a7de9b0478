"""Holds the lock of a file until a line of input comes."""

from __future__ import annotations

import sys
from pathlib import Path

from actors.node import file_lock

with file_lock.held_if_free(Path(sys.argv[1])) as is_ours:
    print(is_ours, flush=True)
    sys.stdin.readline()
