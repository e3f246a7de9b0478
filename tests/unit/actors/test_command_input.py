from __future__ import annotations

import fcntl
import os
import sys
import termios
from collections.abc import Iterator

import pytest

from actors.errors import InputTakenError
from actors.sandbox.command_input import CommandInput
from tests.support.sandboxes import Background
from tests.support.service import eventually

MUCH = bytes(range(256)) * 4096
"""More than a pipe holds."""


class Pipe:
    """A command's input, and the side from which the command reads."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.input = CommandInput(os.fdopen(writing, "wb"))
        self.reader = os.fdopen(self.reading, "rb", buffering=0)

    def read(self, size: int) -> bytes:
        """Reads so many bytes as they come."""
        read = b""
        while len(read) < size:
            read += self.reader.read(size - len(read))
        return read

    def is_full(self) -> bool:
        """True if a writer of more has to wait."""
        held = bytearray(4)
        fcntl.ioctl(self.reading, termios.FIONREAD, held)
        return int.from_bytes(held, sys.byteorder) == fcntl.fcntl(self.reading, fcntl.F_GETPIPE_SZ)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.reader.close()


def test_a_writer_waits_until_the_command_has_taken_all(pipe: Pipe) -> None:
    writing = Background(lambda: pipe.input.write(MUCH, writer="a"))
    eventually(pipe.is_full)
    assert not writing.ended

    assert pipe.read(len(MUCH)) == MUCH and writing.result()
    pipe.input.end(writer="a")
    pipe.input.end(writer="a")
    assert pipe.reader.read(1) == b""
    pipe.input.close()


def test_a_command_that_reads_no_more_lets_its_writer_go_on(pipe: Pipe) -> None:
    writing = Background(lambda: pipe.input.write(MUCH, writer="a"))
    eventually(pipe.is_full)
    pipe.reader.close()

    assert writing.result() is False
    assert pipe.input.write(b"", writer="a") is False
    assert pipe.input.write(b"x", writer="a") is False
    pipe.input.end(writer="a")
    pipe.input.close()


def test_the_end_of_a_command_wakes_its_writer_though_another_process_holds_the_pipe(pipe: Pipe) -> None:
    writing = Background(lambda: pipe.input.write(MUCH, writer="a"))
    eventually(pipe.is_full)

    pipe.input.close()

    assert writing.result() is False
    assert pipe.input.write(b"x", writer="a") is False
    pipe.input.end(writer="a")
    assert len(pipe.reader.read(len(MUCH))) < len(MUCH)


def test_no_bytes_ask_whether_the_command_reads(pipe: Pipe) -> None:
    assert pipe.input.write(b"", writer="a")
    assert pipe.input.write(b"x", writer="a")
    assert pipe.input.write(b"", writer="a")
    pipe.input.close()
    assert not pipe.input.write(b"", writer="a")


def test_an_input_has_one_writer_and_one_end(pipe: Pipe) -> None:
    assert not pipe.input.is_used_by("a")
    assert pipe.input.write(b"x", writer="a")
    for act in (lambda: pipe.input.write(b"y", writer="b"), lambda: pipe.input.end(writer="b")):
        with pytest.raises(InputTakenError):
            act()
    assert pipe.input.is_used_by("a") and not pipe.input.is_used_by("b")
    pipe.input.end(writer="a")
    assert not pipe.input.is_used_by("a")
    with pytest.raises(InputTakenError):
        pipe.input.write(b"z", writer="a")
    assert pipe.reader.read(10) == b"x"
    pipe.input.close()


def test_a_second_writer_is_refused_while_the_first_one_waits(pipe: Pipe) -> None:
    writing = Background(lambda: pipe.input.write(MUCH, writer="a"))
    eventually(pipe.is_full)
    with pytest.raises(InputTakenError):
        pipe.input.write(b"", writer="b")
    pipe.input.close()
    assert writing.result() is False


def test_a_writer_that_waits_here_or_has_sent_all_is_not_silent(pipe: Pipe) -> None:
    eventually(lambda: pipe.input.silent_s > 0.01)
    writing = Background(lambda: pipe.input.write(MUCH, writer="a"))
    eventually(pipe.is_full)
    assert pipe.input.silent_s == 0
    assert pipe.input.write(b"", writer="a") is True, "it does not wait behind the other call"
    assert len(pipe.read(len(MUCH))) == len(MUCH) and writing.result()
    eventually(lambda: pipe.input.silent_s > 0.01)
    pipe.input.end(writer="a")
    assert pipe.input.silent_s == 0
    pipe.input.close()


def test_no_descriptor_is_left(pipe: Pipe) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        other = Pipe()
        other.input.write(b"x", writer="a")
        other.input.close()
        other.reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
    pipe.input.close()
