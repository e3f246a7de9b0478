"""Runs fifty commands and backups, and prints the zombies that are left."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from actors.node.hierarchies import Hierarchies
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import backup, from_description, restore, run, sh


def zombies() -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
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
    wait_until(lambda: counted.read_text() == "0\n" and not zombies())
    print(zombies(), counted.read_text().strip())
    box.close()
