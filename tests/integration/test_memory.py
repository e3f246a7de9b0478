"""Out of memory: the kernel kills commands first, and all sandboxes together get less than the machine's memory."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from actors.node.hierarchies import Hierarchies
from actors.node.memory import Rank
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import Node, backup, run, service_cgroup, sh, write

MIB = 2**20
HOLD = """python3 -c 'import os, time; x = bytearray(150 << 20)
while not os.path.exists("go"): time.sleep(0.05)'"""
"""Takes half of the memory in the test below, and holds it until there is a file named `go`."""
LIMITS = ("memory.max", "memory.limit_in_bytes")


def limit_of_all(node: Node) -> int:
    """Returns the memory limit of the node's group. Skips the test if this machine has no memory controller."""
    found = Hierarchies.find()
    name = service_cgroup(node.data_dir)
    for base in (found.v2, *found.v1.values()):
        for file in LIMITS:
            if (limit := base / name / file).exists():
                return int(limit.read_text())
    pytest.skip("no controller for memory")


def test_the_kernel_kills_commands_first_and_they_cannot_change_that(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    worst = f"{int(Rank.COMMAND)}\n"
    assert sh(box, "cat /proc/self/oom_score_adj; sh -c 'cat /proc/self/oom_score_adj'") == worst * 2
    for pid in ("self", "$$", "$PPID", "1"):
        assert run(box, "sh", "-c", f"echo 0 > /proc/{pid}/oom_score_adj").exit_code != 0
        assert run(box, "sh", "-c", f"echo 0 > /proc/{pid}/oom_adj").exit_code != 0
    assert sh(box, "cat /proc/self/oom_score_adj") == worst


def test_a_command_sees_its_processes_and_can_open_its_own_descriptors(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "echo written > file; exec 3<> file; echo more > /proc/self/fd/3; cat /proc/self/fd/3")
    assert sh(box, "cat file") == "more\n"
    assert "bash\n" in sh(box, "bash -c 'cat /proc/$$/comm; :'")


def test_all_sandboxes_together_get_less_memory_than_the_node(kernel_node: Node) -> None:
    sh(kernel_node.sandbox(), "true")
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < limit_of_all(kernel_node) <= int(meminfo["MemTotal"].split()[0]) * 1024 * 9 // 10


def test_when_sandboxes_fill_the_memory_only_commands_are_killed(
    kernel_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.node.cgroup.share_of_sandboxes", lambda groups: 300 * MIB)
    boxes = [kernel_node.sandbox(f"full-{number}") for number in range(3)]
    for box in boxes:
        sh(box, "echo kept > file")
    assert limit_of_all(kernel_node) == 300 * MIB
    codes: list[int] = []

    def fill(number: int) -> None:
        codes.append(run(boxes[number], "sh", "-c", HOLD).exit_code)

    filling = [threading.Thread(target=fill, args=(number,)) for number in range(3)]
    for thread in filling:
        thread.start()
    try:
        assert wait_until(lambda: 137 in codes), codes
    finally:
        for box in boxes:
            write(box, "/workspace/go", "")
        for thread in filling:
            thread.join()
    for box in boxes:
        assert sh(box, "cat file") == "kept\n"
        backup(box)
    assert wait_until(lambda: run(boxes[0], "sh", "-c", HOLD).exit_code == 0)
