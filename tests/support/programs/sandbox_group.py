"""Makes a sandbox's group, and prints the groups of a process in it, and its limits."""

from __future__ import annotations

import subprocess

from actors.node.cgroup import Cgroup

group = Cgroup("holdfast-x/one", memory_bytes=2**28, processes=20)
group.prepare()
ended = subprocess.run(group.entry(["cat", "/proc/self/cgroup"]), capture_output=True, text=True)
print(ended.stdout)
print(group.limits())
group.remove()
Cgroup.remove_tree("holdfast-x")
