"""Resources that the kernel counts per user or per machine: one sandbox takes all it can, the other keeps its own.

Each test takes as much of one resource as a command can get (`tests/support/hoard.py`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.sandbox.facade import LocalSandbox
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import Node, command, sh, write

pytestmark = pytest.mark.alone
HOARD = Path(__file__).parents[1] / "support" / "hoard.py"
OF_THE_MACHINE = {"network-buffers": 1000, "asynchronous-io": 1, "terminals": 64}

OF_A_USER = (
    "inotify-instances",
    "inotify-watches",
    "timers",
    "message-queues",
    "locked-memory",
    "pipes",
    "files-in-flight",
)
ALL = 10**9


def hoarder(node: Node, name: str) -> LocalSandbox:
    """A sandbox with the hoarding program, and files to watch."""
    box = node.sandbox(name)
    write(box, "/workspace/hoard.py", HOARD.read_bytes())
    sh(box, "python3 hoard.py names 2000")
    return box


def held(box: LocalSandbox, kind: str, at_most: int) -> int:
    """Returns how many units of a resource a command gets when it asks for `at_most`."""
    said = sh(box, f"python3 hoard.py {kind} {at_most}").split()
    assert said[0] == "held"
    return int(said[1])


@pytest.mark.parametrize(("kind", "wanted"), OF_THE_MACHINE.items(), ids=OF_THE_MACHINE)
def test_hoarding_a_resource_of_the_machine_leaves_another_sandbox_its_share(
    kernel_node: Node, kind: str, wanted: int
) -> None:
    greedy, modest = hoarder(kernel_node, "greedy"), hoarder(kernel_node, "modest")
    alone = held(modest, kind, wanted)
    with command(greedy, f"exec python3 hoard.py {kind}"):
        assert held(modest, kind, wanted) == alone


@pytest.mark.parametrize("kind", OF_A_USER)
def test_hoarding_a_resource_of_the_user_leaves_another_sandbox_its_share(kernel_node: Node, kind: str) -> None:
    greedy, modest = hoarder(kernel_node, "greedy"), hoarder(kernel_node, "modest")
    alone = held(modest, kind, ALL)
    assert alone > 0
    with command(greedy, f"exec python3 hoard.py {kind}"):
        # The kernel frees units in the background after the first run.
        assert wait_until(lambda: held(modest, kind, ALL) >= alone * 0.9, timeout_s=120)
