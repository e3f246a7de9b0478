"""Moves this process into its leaf and passes a controller on, while it forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from actors.node.delegation import Group, pass_on
from actors.node.hierarchies import PROCS, SERVICE_LEAF, Hierarchies

base, controller = Hierarchies.find().v2, sys.argv[1]
over = threading.Event()


def fork() -> None:
    while not over.is_set():
        subprocess.Popen(["/bin/sh", "-c", "/bin/true; /bin/true"]).wait()


threads = [threading.Thread(target=fork) for _ in range(4)]
for thread in threads:
    thread.start()
try:
    print(pass_on(Group(base), [controller]))
    print((base / PROCS).read_text().split(), controller in (base / "cgroup.subtree_control").read_text())
    print(str(os.getpid()) in (base / SERVICE_LEAF / PROCS).read_text().split(), Hierarchies.find().v2 == base)
finally:
    over.set()
    for thread in threads:
        thread.join()
