"""Has a sandbox awake with a command until it is told to go on."""

from __future__ import annotations

import sys

from tests.support.sandboxes import backup, command, from_description, read, restore, sh

box = from_description(sys.argv[1]).sandbox()
sh(box, "mkdir data; echo original > data/file")
restore(box, backup(box, "/workspace/data"))
sh(box, "echo later >> data/file")
with command(box, "echo started; exec sleep 1000") as running:
    print("ready", flush=True)
    sys.stdin.readline()
    print(read(box, "/workspace/data/file").decode().split(), running.ended, flush=True)
box.close()
