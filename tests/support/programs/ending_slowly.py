"""Is in its group and holds a lock until it is killed, and then takes long to end, because it has many files open."""

from __future__ import annotations

import fcntl
import os
import resource
import sys

from actors.node import actor_group

actor_group.enter(sys.argv[1])
lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)  # before the other files: the kernel closes it first
fcntl.lockf(lock, fcntl.LOCK_EX)
limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
for _ in range(min(most // 2 - 20, 50_000)):
    os.pipe()
print("ready", flush=True)
sys.stdin.readline()
