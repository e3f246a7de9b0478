"""Moves this process into its leaf, passes a controller on, and prints why not and where it is."""

from __future__ import annotations

import sys
from pathlib import Path

from actors.node.delegation import Group, pass_on
from actors.node.hierarchies import PROCS, SERVICE_LEAF, Hierarchies

base, controller = Hierarchies.find().v2, sys.argv[1]
print(pass_on(Group(base), [controller]))
print(SERVICE_LEAF in Path("/proc/self/cgroup").read_text(), (base / PROCS).read_text().split())
