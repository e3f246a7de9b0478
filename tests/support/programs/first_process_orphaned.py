"""Kills a box's bubblewrap but not its first process, and itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from actors.node import bubblewrap, process
from actors.node.bubblewrap import Bind, Box, boxed
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import UID, from_description, sh

node = from_description(sys.argv[1])
box = node.sandbox()
assert sh(box, "cat data/later") == "later\n"
outer = bubblewrap.outer
# Its first process lives on, as if its bubblewrap had been killed before it asked to die with it.
bubblewrap.outer = lambda binds: [option for option in outer(binds) if option != "--die-with-parent"]
tree = Bind(node.tree(box) / "workspace", "/workspace", writable=True)
reader, told = Box(uid=UID, hostname="box", binds=(tree,)), subprocess.DEVNULL
with boxed(reader, ["sleep", "1000"], identity=bubblewrap.Identity.READER) as made:
    main = process.start(made.argv, pass_fds=made.fds, stdout=told, stderr=told)
children = Path(f"/proc/{main.pid}/task/{main.pid}/children")
assert wait_until(lambda: children.read_text() != "")
first = int(children.read_text())
assert wait_until(lambda: Path(f"/proc/{first}/comm").read_text() == "unshare\n")
assert wait_until(lambda: "/oldroot" not in Path(f"/proc/{first}/mountinfo").read_text())
print(first, flush=True)
os.kill(main.pid, 9)
os.kill(os.getpid(), 9)
