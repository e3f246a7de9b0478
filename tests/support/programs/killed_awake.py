"""Has a sandbox awake with a command and a stray process, and kills itself at a moment."""

from __future__ import annotations

import subprocess
import sys

from actors.node.cgroup import Cgroup
from tests.support.control_groups import pids_in
from tests.support.killing import act_at, die
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import backup, command, from_description, restore, sh, write

told, name, moment = sys.argv[1:]
node = from_description(told)
box = node.sandbox(name)
sh(box, "mkdir data; echo original > data/changed; echo original > data/kept")
handle = backup(box, "/workspace/data")
restore(box, handle)
sh(box, "echo later > data/changed; echo later > data/added")
write(box, "/app/written", "acknowledged")
name_of_group = node.layout.sandbox_cgroup("default", name)
group = Cgroup(name_of_group, memory_bytes=0, processes=0)
with command(box, "echo started; exec sleep 1000"):
    # Commands die with their actor; this one does not.
    quiet = subprocess.DEVNULL
    stray = subprocess.Popen(group.entry(["sleep", "1000"]), stdout=quiet, stderr=quiet, start_new_session=True)
    assert wait_until(lambda: stray.pid in pids_in(name_of_group))
    if moment == "awake":
        die()
    act_at("fetch", "after")
    restore(box, handle)
print("survived", flush=True)
