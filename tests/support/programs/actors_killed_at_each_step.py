"""Starts actors one after the other, and kills each at a later step of bubblewrap."""

from __future__ import annotations

import os
import sys

from actors.node import actor_group, holders, mountinfo
from actors.service.node_sweeper import NodeSweeper
from tests.support.mount_leaks import loop_devices, wait_until
from tests.support.sandboxes import backup, from_description, run, sh
from tests.support.stepping import Steps

told, kind, stride = sys.argv[1], sys.argv[2], int(sys.argv[3])
node = from_description(told)
node.catalog()


def live(ready: int, go: int) -> None:
    actor_group.enter(node.layout.cgroup)
    box = node.sandbox("box")
    os.write(ready, sh(box, "cat data/file data/later").encode())
    os.read(go, 1)
    if kind == "command":
        run(box, "true")
    else:
        backup(box, "/workspace/data")


step, ended = 1, False
while not ended:
    (reading, ready), (go, going) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            live(ready, go)
        except BaseException as e:
            os.write(2, f"{e!r} {getattr(e, 'context', '')}\n".encode())
        os._exit(0)
    os.close(ready)
    content = os.read(reading, 100)
    assert content == b"original\nlater\n", (step, content)
    steps = Steps(pid, "bwrap")
    os.write(going, b"x")
    ended = not steps.kill_at(step)
    for fd in (reading, go, going):
        os.close(fd)
    step += stride
swept = NodeSweeper(node.config.node, None).sweep()
assert not swept.stuck, swept
assert not [holder for holder in holders.find(list(node.layout.mounting)) if holder.is_orphan]
assert wait_until(lambda: not loop_devices(node.data_dir)), loop_devices(node.data_dir)
assert not mountinfo.mounts_under(node.data_dir)
print(step // stride, "steps", flush=True)
