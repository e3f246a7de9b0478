from __future__ import annotations

import os
import pty
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.models import Exit, Output
from gateway.cli.app import main
from gateway.cli.standard_input import STDIN, holds_data
from tests.unit.gateway.memory_cluster import MemoryCluster, MemoryDoors, MemorySandbox

Capture = pytest.CaptureFixture[str]
ARGV = ["exec", "box", "--", "cat"]


@pytest.fixture
def cluster() -> MemoryCluster:
    return MemoryCluster()


@pytest.fixture
def box(cluster: MemoryCluster) -> MemorySandbox:
    return cluster.sandbox("default", "box")


@contextmanager
def standard_input(fd: int) -> Iterator[None]:
    kept = os.dup(STDIN)
    os.dup2(fd, STDIN)
    try:
        yield
    finally:
        os.dup2(kept, STDIN)
        os.close(kept)


def test_standard_input_holds_data_only_if_there_is_something_to_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    opened = os.open(file, os.O_RDONLY)
    assert holds_data(opened)
    assert os.read(opened, 100) == b"content"
    assert not holds_data(opened)
    one, other = socket.socketpair()
    for ours, theirs in (os.pipe(), (one.detach(), other.detach())):
        assert not holds_data(ours), "nobody has written yet"
        os.write(theirs, b"x")
        assert holds_data(ours)
        assert os.read(ours, 100) == b"x"
        os.close(theirs)
        assert not holds_data(ours), "it has ended"
    assert not holds_data(os.open(os.devnull, os.O_RDONLY))
    controller, terminal = pty.openpty()
    os.write(controller, b"typed\n")
    assert not holds_data(terminal)
    os.close(opened)
    assert not holds_data(opened)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_exec_refuses_piped_input(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture, options: list[str]
) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"input")
    with standard_input(ours):
        assert main(["exec", "box", *options, "--", "cat"], doors=MemoryDoors(cluster)) == 1
    said = "".join(capsys.readouterr())
    assert "cannot read our standard input" in said and "holdfast cp" in said
    assert box.asked == []
    assert os.read(ours, 100) == b"input"


def test_exec_runs_if_the_pipe_holds_no_input(cluster: MemoryCluster, box: MemorySandbox, capsys: Capture) -> None:
    ours, theirs = os.pipe()
    with standard_input(ours):
        assert main(ARGV, doors=MemoryDoors(cluster)) == 0
        os.close(theirs)
        assert main(ARGV, doors=MemoryDoors(cluster)) == 0
    assert capsys.readouterr().err == ""


def test_exec_warns_of_input_that_came_too_late(cluster: MemoryCluster, box: MemorySandbox, capsys: Capture) -> None:
    ours, theirs = os.pipe()

    class Late(list[Output | Exit]):
        def __iter__(self) -> Iterator[Output | Exit]:
            os.write(theirs, b"late")
            return super().__iter__()

    box.script = Late([Exit(exit_code=3)])  # type: ignore[assignment]
    with standard_input(ours):
        assert main(ARGV, doors=MemoryDoors(cluster)) == 3
    assert "has read nothing of our standard input" in capsys.readouterr().err
