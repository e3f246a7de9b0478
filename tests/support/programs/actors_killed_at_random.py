"""Starts actors one after the other, and kills each at a random moment of a start."""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from actors.node import actor_group, holders, mountinfo
from actors.service.node_sweeper import NodeSweeper
from tests.support.mount_leaks import loop_devices, wait_until
from tests.support.sandboxes import backup, from_description, run, sh

told, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
node = from_description(told)
node.catalog()


def live(ready: int) -> None:
    actor_group.enter(node.layout.cgroup)
    box = node.sandbox("box")
    content = sh(box, "cat data/file data/later")
    os.write(ready, content.encode())
    while True:
        if chance.random() < 0.5:
            run(box, "true")
        else:
            backup(box, "/workspace/data")


for number in range(count):
    reading, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        chance.seed((seed, number).__hash__())
        try:
            live(ready)
        except BaseException as e:
            os.write(2, f"{e!r} {getattr(e, 'context', '')}\n".encode())
        os._exit(1)
    os.close(ready)
    began = time.monotonic()
    content = os.read(reading, 100)
    assert content == b"original\nlater\n", (number, content)
    assert time.monotonic() - began < 120, number
    os.close(reading)
    time.sleep(chance.uniform(0, 0.03))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
swept = NodeSweeper(node.config.node, None).sweep()
assert not swept.stuck, swept
assert not [holder for holder in holders.find(list(node.layout.mounting)) if holder.is_orphan]
assert wait_until(lambda: not loop_devices(node.data_dir)), loop_devices(node.data_dir)
assert not mountinfo.mounts_under(node.data_dir)
print("all came back", flush=True)
