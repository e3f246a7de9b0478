"""Writes over two restored directories, and kills itself."""

from __future__ import annotations

import os
import signal
import sys

from tests.support.sandboxes import backup, command, from_description, restore, sh

node = from_description(sys.argv[1])
box = node.sandbox()
sh(box, "mkdir -p data/inner; echo 1 > data/a; echo 2 > data/inner/b")
handle, inner = backup(box, "/workspace/data"), backup(box, "/workspace/data/inner")
restore(box, handle)
restore(box, inner)
sh(box, "echo 3 > data/c; echo 4 > data/inner/d; rm data/a; sync")
running = command(box, "echo started; exec sleep 1000")
running.__enter__()
os.kill(os.getpid(), signal.SIGKILL)
