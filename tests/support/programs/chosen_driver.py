"""Prints the driver that is chosen here."""

from __future__ import annotations

import sys
from pathlib import Path

from actors.node import driver_choice

print(driver_choice.choose("auto", Path(sys.argv[1])))
