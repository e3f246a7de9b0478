"""Processes under the conditions of a container: its own pid namespace, a /proc with covered parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.namespaces import MASKS, beside_a_process_1_that_reaps_nothing, in_pid_namespace
from tests.support.sandboxes import UID, Node, described

BOXES = """
import os, sys
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
"""


@pytest.mark.parametrize("before", ["", MASKS], ids=["a whole /proc", "a /proc with covered parts"])
def test_every_box_is_built_in_a_pid_namespace_of_few_processes(tmp_path: Path, before: str) -> None:
    ended = in_pid_namespace(BOXES, str(tmp_path), str(UID), before=before)
    assert ended.returncode == 0, ended.stderr


MANY = """
import sys
from pathlib import Path
from actors.node import mountinfo
from actors.node.hierarchies import Hierarchies
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import backup, from_description, restore, run, sh

def zombies():
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
        if rest.split()[0] == "Z":
            found[int(entry.name)] = name
    return found

with from_description(sys.argv[1]) as node:
    box = node.sandbox("many")
    sh(box, "mkdir data; echo kept > data/file")
    for number in range(50):
        if number % 5:
            sh(box, "sleep 1000 & (sleep 1000 &) ; true")
            assert run(box, "sh", "-c", "setsid sleep 1000 & kill -9 $$").exit_code == 137
        else:
            handle = backup(box, "/workspace/data")
            restore(box, handle, "/workspace/again", mode="overlay" if number % 2 else "copy")
    assert b"".join(box.persist("a tar"))
    group = Hierarchies.find().v1["pids"] / node.layout.sandbox_cgroup("default", "many")
    counted = group / "pids.current"
    wait_until(lambda: counted.read_text() == "0\\n", timeout_s=10)
    print(zombies(), counted.read_text().strip())
    box.close()
"""


def test_fifty_commands_and_backups_leave_no_zombie_where_process_1_reaps_nothing(node: Node) -> None:
    assert beside_a_process_1_that_reaps_nothing(MANY, described(node)).splitlines()[-1] == "{} 0"
