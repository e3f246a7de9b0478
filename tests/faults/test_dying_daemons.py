"""A FUSE daemon dies while calls wait for it: the kernel aborts them, and each caller gets MountLostError."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from actors.errors import MountLostError
from actors.node import mountinfo
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import Background, Node, backup, hydrate, read, restore, run, sh, write

DAEMONS = [
    pytest.param(Driver.MIXED, "squashfuse_ll", id="mixed"),
    pytest.param(Driver.ROOTLESS, "squashfuse_ll", id="rootless"),
    pytest.param(Driver.FUSE, "fuse-overlayfs", id="fuse"),
]
CALLS: dict[str, Callable[[LocalSandbox], object]] = {
    "list": lambda box: box.list_files("/workspace/data/new-to-all"),
    "read": lambda box: read(box, "/workspace/data/new-to-all/a"),
    "write": lambda box: write(box, "/workspace/data/new-to-all/b", "2\n"),
    "write into what is not there": lambda box: write(box, "/workspace/data/new-to-all/x/y/z", "2\n"),
    "delete": lambda box: box.delete_file("/workspace/data/new-to-all/a"),
    "persist": lambda box: b"".join(box.persist("a-name")),
    "hydrate": lambda box: hydrate(box, b"\0" * 10_240),
    "enter": lambda box: run(box, "true", cwd="/workspace/data/new-to-all"),
    "run": lambda box: run(box, "cat", "/workspace/data/new-to-all/a"),
}


def daemons(node: Node, name: str) -> list[int]:
    return [pid for pid, found in node.processes().items() if found == name]


def shows_again(box: LocalSandbox) -> bool:
    try:
        return sh(box, "ls data") == "new-to-all\n"
    except MountLostError:  # for calls that come before it is mounted again
        return False


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(("driver", "name"), DAEMONS, indirect=["driver"])
def test_a_call_that_waits_for_a_daemon_as_it_dies_gets_an_error(
    node: Node, name: str, call: Callable[[LocalSandbox], object]
) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p data/new-to-all; echo 1 > data/new-to-all/a")
    restore(box, backup(box, "/workspace/data"))
    stopped = daemons(node, name)
    assert stopped and mountinfo.mounts_under(node.data_dir)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    waiting = Background(lambda: call(box))
    wait_until(lambda: waiting.ended, timeout_s=0.5)  # a call that needs no daemon has ended by now
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: waiting.ended)
    error = waiting.error()
    assert error is None or isinstance(error, MountLostError), error
    assert wait_until(lambda: shows_again(box))
