"""Starts a bubblewrap that cannot go on, and kills it and perhaps itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from actors.node import actor_group, process
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import from_description, sh

told, grouped = sys.argv[1:]
node = from_description(told)
if grouped == "grouped":
    actor_group.enter(node.layout.cgroup)
box = node.sandbox()
assert sh(box, "cat data/later") == "later\n"
# bwrap tells of its child before it lets it go on; into a pipe that is full it cannot.
reading, full = os.pipe()
os.set_blocking(full, False)
try:
    while True:
        os.write(full, bytes(65536))
except BlockingIOError:
    os.set_blocking(full, True)
argv = ["bwrap", "--die-with-parent", "--unshare-pid", "--ro-bind", "/", "/", "--info-fd", str(full), "--", "true"]
main = process.start(argv, pass_fds=[full])
children = Path(f"/proc/{main.pid}/task/{main.pid}/children")
assert wait_until(lambda: children.read_text() != "")
child = int(children.read_text())
assert wait_until(lambda: Path(f"/proc/{child}/syscall").read_text().startswith("0 "))  # it reads the eventfd
print(main.pid, child, flush=True)
if grouped == "alive":
    os.kill(main.pid, 9)
    process.kill_group(main)
    print(wait_until(lambda: not os.path.exists(f"/proc/{child}/ns/mnt")), flush=True)
    box.close()
else:
    os.kill(main.pid, 9)
    os.kill(os.getpid(), 9)
