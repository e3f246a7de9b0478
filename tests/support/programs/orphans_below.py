"""Prints the processes that hold something below a folder, and whether each is an orphan."""

from __future__ import annotations

import sys
from pathlib import Path

from actors.node import holders

print([(one.pid, one.is_orphan) for one in holders.find([Path(sys.argv[1])])])
