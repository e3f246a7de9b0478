"""Runs programs in their own user namespace: as root in it, without any privilege outside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.mount_leaks import wait_until
from tests.support.service import PROJECT

_WAITS = ["unshare", "--user", "--mount", "--propagation", "private", "sh", "-c", 'read mapped; exec "$@"', "sh"]
_ALL_IDS = "0 0 4294967295\n"
_LIMIT_S = 120.0


def in_a_user_namespace(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end with every capability in a new user namespace, and none outside.

    Each id is mapped to itself, so that the program can use the test's files. Only a process outside may map that many,
    so the program waits for the mapping; its exec then makes it root.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen([*_WAITS, *argv], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=PROJECT) as child:
        own, of_child = os.readlink("/proc/self/ns/user"), Path(f"/proc/{child.pid}/ns/user")
        assert wait_until(lambda: os.readlink(of_child) != own)
        for kind in ("uid", "gid"):
            Path(f"/proc/{child.pid}/{kind}_map").write_text(_ALL_IDS)
        out, err = child.communicate("mapped\n", timeout=_LIMIT_S)
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)
