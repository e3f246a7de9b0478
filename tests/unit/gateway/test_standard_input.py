from __future__ import annotations

import io
import os
import pty
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from actors.client import Sandbox, SandboxCalls
from actors.errors import INPUT_CUT_OFF, ExecStoppedError, HoldfastError, InvalidRequestError
from actors.models import MAX_INPUT_BYTES, ExecEvent, Exit, Started
from actors.rpc.input_source import InputSource
from gateway.cli.app import main
from gateway.cli.standard_input import STDIN, passed_on
from tests.unit.gateway.conftest import DEADLINE_S
from tests.unit.gateway.memory_cluster import MemoryCluster, MemoryDoors, MemoryInput, MemorySandbox

Capture = pytest.CaptureFixture[str]
MUCH = bytes(range(256)) * (MAX_INPUT_BYTES // 256) + b"x"


@pytest.fixture
def cluster() -> MemoryCluster:
    return MemoryCluster()


@pytest.fixture
def box(cluster: MemoryCluster) -> MemorySandbox:
    return cluster.sandbox("default", "box")


class Reading(list[Started | ExecEvent | HoldfastError]):
    """The events of a command that ends once `until` is set."""

    def __init__(self, until: threading.Event, end: Exit | HoldfastError) -> None:
        super().__init__([Started(command_id="a-name"), end])
        self._until = until

    def __iter__(self) -> Iterator[Any]:
        for event in super().__iter__():
            if not isinstance(event, Started):
                assert self._until.wait(DEADLINE_S)
            yield event


def taking(box: MemorySandbox, *, exit_code: int = 0) -> MemoryInput:
    """Has the sandbox's command read its input to the end."""
    found = box.inputs["a-name"] = MemoryInput()
    box.script = Reading(found.ended, Exit(exit_code=exit_code))  # type: ignore[assignment]
    return found


@contextmanager
def standard_input(fd: int) -> Iterator[None]:
    kept = os.dup(STDIN)
    os.dup2(fd, STDIN)
    try:
        yield
    finally:
        os.dup2(kept, STDIN)
        os.close(kept)


def test_what_is_piped_or_redirected_is_passed_on_and_a_terminal_is_not(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    opened = os.open(file, os.O_RDONLY)
    one, other = socket.socketpair()
    for fd in (opened, os.pipe()[0], one.detach(), other.detach(), os.open("/dev/zero", os.O_RDONLY)):
        assert passed_on(fd) is not None
    _, terminal = pty.openpty()
    assert passed_on(terminal) is None
    assert passed_on(os.open(os.devnull, os.O_RDONLY)) is None
    os.close(opened)
    assert passed_on(opened) is None


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_exec_passes_piped_input_on_to_its_end(cluster: MemoryCluster, box: MemorySandbox, options: list[str]) -> None:
    found = taking(box, exit_code=3)
    ours, theirs = os.pipe()
    os.write(theirs, b"input\xff")
    os.close(theirs)
    with standard_input(ours):
        assert main(["exec", "box", *options, "--", "cat"], doors=MemoryDoors(cluster)) == 3
    assert b"".join(found.pieces) == b"input\xff"
    assert box.asked[0].stdin_stream


def test_exec_ends_with_its_command_though_its_input_goes_on(cluster: MemoryCluster, box: MemorySandbox) -> None:
    box.inputs["a-name"] = MemoryInput()
    box.script = [Started(command_id="a-name"), Exit(exit_code=4)]
    ours, theirs = os.pipe()
    with standard_input(ours):
        assert main(["exec", "box", "--", "true"], doors=MemoryDoors(cluster)) == 4
    os.close(theirs)


def test_exec_without_input_takes_none(cluster: MemoryCluster, box: MemorySandbox) -> None:
    with standard_input(os.open(os.devnull, os.O_RDONLY)):
        assert main(["exec", "box", "--", "cat"], doors=MemoryDoors(cluster)) == 0
    assert (box.asked[0].given_input, box.asked[0].stdin_stream) == (None, False)


@pytest.fixture
def sandbox(cluster: MemoryCluster, box: MemorySandbox) -> Sandbox:
    return MemoryDoors(cluster).sandbox("box", tenant="default", address=None, data_dir=None)


@pytest.mark.parametrize(("stdin", "sent"), [(b"", b""), (b"\xff\0", b"\xff\0"), ("ü\udce9", b"\xc3\xbc\xe9")])
def test_little_input_travels_with_its_command(
    sandbox: Sandbox, box: MemorySandbox, stdin: bytes | str, sent: bytes
) -> None:
    assert sandbox.exec(["cat"], stdin=stdin).exit_code == 0
    assert (box.asked[0].given_input, box.asked[0].stdin_stream) == (sent, False)


@pytest.mark.parametrize("stdin", [MUCH, MUCH.decode("latin-1"), io.BytesIO(MUCH), io.BufferedReader(io.BytesIO(b"x"))])
def test_much_input_and_files_are_streamed(sandbox: Sandbox, box: MemorySandbox, stdin: Any) -> None:
    found = taking(box)
    assert sandbox.exec(["cat"], stdin=stdin).exit_code == 0
    assert (box.asked[0].given_input, box.asked[0].stdin_stream) == (None, True)
    assert b"".join(found.pieces) in (MUCH, MUCH.decode("latin-1").encode(), b"x")


class Broken(io.RawIOBase):
    """A file that cannot be read on."""

    def read(self, size: int = -1) -> bytes:
        raise OSError("the disk is gone")


@pytest.mark.parametrize(("stdin", "error"), [(Broken(), OSError), (io.StringIO("text"), InvalidRequestError)])
def test_a_file_that_cannot_be_read_stops_its_command_and_is_the_error(
    sandbox: Sandbox, box: MemorySandbox, stdin: Any, error: type[Exception]
) -> None:
    found = box.inputs["a-name"] = MemoryInput()
    stopped = ExecStoppedError("Cut off.", context={"reason": INPUT_CUT_OFF})
    box.script = Reading(found.cut_off, stopped)  # type: ignore[assignment]
    with pytest.raises(error):
        sandbox.exec(["cat"], stdin=stdin)
    assert not found.ended.is_set()


def test_a_caller_that_waits_for_more_of_its_file_shows_that_it_is_there(box: MemorySandbox) -> None:
    found = box.inputs["a-name"] = MemoryInput()
    events: Any = Reading(found.heard_of, Exit(exit_code=0))
    ours, theirs = os.pipe()
    with open(ours, "rb", buffering=0) as silent:
        assert list(InputSource(silent, ping_s=0.01).feeding(cast(SandboxCalls, box), iter(events))) == [
            Exit(exit_code=0)
        ]
        os.close(theirs)
        assert set(found.pieces) == {b""}


def test_a_value_that_is_no_input_is_refused_before_any_call(sandbox: Sandbox, box: MemorySandbox) -> None:
    for wrong in (1, ["text"], object()):
        with pytest.raises(InvalidRequestError):
            sandbox.exec(["cat"], stdin=wrong)  # type: ignore[arg-type]
    assert box.asked == []
