"""Builds every kind of box several times, as process 1."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from actors.node import process
from actors.node.bubblewrap import Bind, Box, Identity, boxed

assert os.getpid() == 1
work = Path(sys.argv[1])
box = Box(uid=int(sys.argv[2]), hostname="a-box", binds=(Bind(work, "/workspace", writable=True),))
for number in range(4):
    for identity in Identity:
        for with_status in (False, True):
            argv = ["sh", "-c", "ls /proc | grep -c '^[0-9]'; cat /proc/self/comm; readlink /proc/self/ns/pid"]
            with boxed(box, argv, identity=identity, with_status=with_status) as ready:
                ended = process.run(ready.argv, timeout_s=20, pass_fds=ready.fds)
            assert ended.status == 0, (number, identity, ended)
            count, comm, namespace = ended.stdout.decode().split()
            assert int(count) <= 6 and comm == "cat", ended
            assert namespace != os.readlink("/proc/self/ns/pid")
