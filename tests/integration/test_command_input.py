"""The standard input of commands, on the real box."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from actors.config import ExecLimits
from actors.errors import CommandNotFoundError, ExecStoppedError, ExecTimeoutError, InputTakenError
from actors.models import MAX_INPUT_BYTES, ExecRequest, ExecResult, Exit, Output, Started
from actors.sandbox.facade import LocalSandbox
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import Background, Node, backup, restore, run, running, sh

BINARY = bytes(range(256)) * 3 + b"\r\n\0\x1a\x04\xff"
MIB = 1024**2
WRITER = "the test"
LONG = "1" * 64 * 1024
"""As much as a pipe holds."""


@pytest.fixture
def box(kernel_node: Node) -> LocalSandbox:
    return kernel_node.sandbox()


@contextmanager
def reading(box: LocalSandbox, script: str, **options: int) -> Iterator[tuple[Background[ExecResult], str]]:
    """A shell script that takes input, in the background, and its id."""
    request = ExecRequest(argv=["sh", "-c", script], stdin_stream=True, timeout_ms=options.get("timeout_ms"))
    with running(box, request) as found:
        yield found


def sent(box: LocalSandbox, command_id: str, *pieces: bytes) -> bool:
    """Sends pieces and the end; tells whether the command has taken all of them."""
    taken = all(box.send_input(command_id, WRITER, piece) for piece in pieces)
    box.end_input(command_id, WRITER)
    return taken


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, MAX_INPUT_BYTES])
def test_an_input_that_comes_with_its_command_is_read_to_its_end(box: LocalSandbox, size: int) -> None:
    data = (BINARY * (size // len(BINARY) + 1))[:size]
    assert run(box, "cat", stdin=data).stdout == data


def test_text_is_read_in_utf8(box: LocalSandbox) -> None:
    events = list(box.exec("a-name", ExecRequest(argv=["cat"], stdin="ü🌲\udce9\n")))
    assert events == [Output(stream="stdout", data="ü🌲".encode() + b"\xe9\n"), Exit(exit_code=0)]


def test_without_input_a_command_reads_the_null_device(box: LocalSandbox) -> None:
    assert sh(box, "readlink /proc/self/fd/0; wc -c") == "/dev/null\n0\n"


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "-"])
def test_input_can_be_opened_by_name(box: LocalSandbox, path: str) -> None:
    assert run(box, "sh", "-c", f"echo read; cat {path}", stdin=BINARY).stdout == b"read\n" + BINARY


@pytest.mark.parametrize("script", ["true", "exec <&-; echo closed", "head -c 1", "sleep 0.01; exit 3"])
def test_a_command_that_does_not_read_its_input_ends_as_without_it(box: LocalSandbox, script: str) -> None:
    expected = run(box, "sh", "-c", script, stdin=b"x")
    assert run(box, "sh", "-c", script, stdin=b"x" * MAX_INPUT_BYTES) == expected


def test_streamed_input_is_announced_first_and_arrives_whole(box: LocalSandbox) -> None:
    size = 100 * MIB
    block = os.urandom(MIB)
    expected = hashlib.sha256()
    events = box.exec("a-name", ExecRequest(argv=["sha256sum"], stdin_stream=True))
    assert next(events) == Started(command_id="a-name")

    def send() -> bool:
        for _ in range(size // MIB):
            expected.update(block)
            if not box.send_input("a-name", WRITER, block):
                return False
        box.end_input("a-name", WRITER)
        return True

    sending = Background(send)
    rest = list(events)
    assert sending.result()
    assert rest == [Output(stream="stdout", data=f"{expected.hexdigest()}  -\n".encode()), Exit(exit_code=0)]


def test_output_and_input_at_once_do_not_wait_for_each_other(box: LocalSandbox) -> None:
    size, block = 100 * MIB, os.urandom(MIB)
    events = box.exec("a-name", ExecRequest(argv=["cat"], stdin_stream=True))
    assert next(events) == Started(command_id="a-name")
    sending = Background(lambda: sent(box, "a-name", *[block] * (size // MIB)))
    read = sum(len(event.data) for event in events if isinstance(event, Output))
    assert sending.result() and read == size


def test_a_command_can_answer_each_piece_before_the_next_is_sent(box: LocalSandbox) -> None:
    events = box.exec("a-name", ExecRequest(argv=["cat"], stdin_stream=True))
    assert next(events) == Started(command_id="a-name")
    for piece in (b"1\n", b"2\n", b"\xff"):
        assert box.send_input("a-name", WRITER, piece)
        assert next(events) == Output(stream="stdout", data=piece)
    box.end_input("a-name", WRITER)
    assert list(events) == [Exit(exit_code=0)]


def test_the_beginning_comes_before_output_that_needs_no_input(box: LocalSandbox) -> None:
    for _ in range(20):
        events = box.exec("a-name", ExecRequest(argv=["echo", "at once"], stdin_stream=True))
        assert next(events) == Started(command_id="a-name")
        assert list(events) == [Output(stream="stdout", data=b"at once\n"), Exit(exit_code=0)]


def test_input_for_a_command_that_has_ended_is_dropped(box: LocalSandbox) -> None:
    with reading(box, "exit 3") as (command, name):
        assert command.result().exit_code == 3
        assert not sent(box, name, b"x")
        assert not sent(box, name, b"")


def test_a_waiting_writer_goes_on_when_its_command_ends(box: LocalSandbox) -> None:
    with reading(box, "until [ -e go ]; do sleep 0.02; done; exit 4") as (command, name):
        sending = Background(lambda: box.send_input(name, WRITER, bytes(MIB)))
        sh(box, "touch go")
        assert sending.result() is False
        assert command.result().exit_code == 4


def test_a_command_that_closes_its_input_runs_on_while_its_writer_waits(box: LocalSandbox) -> None:
    with reading(box, "exec <&-; until [ -e go ]; do sleep 0.02; done; echo end") as (command, name):
        sending = Background(lambda: box.send_input(name, WRITER, bytes(MIB)))
        sh(box, "touch go")
        assert command.result().stdout == b"end\n"
        assert sending.result() is False


def test_a_command_ends_by_sigpipe_though_its_input_is_open(box: LocalSandbox) -> None:
    ended = run(box, "bash", "-c", "yes | head -1; echo ${PIPESTATUS[0]}; cat", stdin=b"input")
    assert ended.stdout == b"y\n141\ninput"


def test_a_command_inherits_no_descriptor_of_its_input_but_the_reading_end(box: LocalSandbox) -> None:
    script = "ls /proc/self/fd; head -c 1; grep ^flags: /proc/self/fdinfo/0"
    with reading(box, "true"), reading(box, script) as (command, name):
        sent(box, name, b"x")
        *numbers, flags = command.result().stdout.decode().split("\n", 4)
    assert numbers[:4] == ["0", "1", "2", "3"], "0 to 2, and the directory that ls reads"
    assert int(flags.split()[-1], 8) & (os.O_ACCMODE | os.O_NONBLOCK) == os.O_RDONLY


def test_a_time_limit_ends_a_command_that_waits_for_input_and_its_writer(box: LocalSandbox) -> None:
    with reading(box, "sleep 600", timeout_ms=3_000) as (command, name):
        sending = Background(lambda: box.send_input(name, WRITER, bytes(MIB)))
        assert isinstance(command.error(), ExecTimeoutError)
        assert sending.result() is False


@pytest.mark.parametrize("end", ["stop", "restore", "destroy", "close"])
def test_what_ends_a_command_ends_its_writer(kernel_node: Node, end: str) -> None:
    box = kernel_node.sandbox()
    sh(box, "echo kept > file")
    handle = backup(box)
    with reading(box, "sleep 600") as (command, name):
        sending = Background(lambda: box.send_input(name, WRITER, bytes(MIB)))
        match end:
            case "stop":
                assert box.stop(name)
            case "restore":
                restore(box, handle)
            case "destroy":
                box.destroy()
            case _:
                box.close()
        assert isinstance(command.error(), ExecStoppedError)
        assert sending.result() is False


def test_a_backup_pauses_a_command_whose_writer_waits(box: LocalSandbox) -> None:
    script = "until [ -e go ]; do sleep 0.02; done; sha256sum"
    data = BINARY * (4 * MIB // len(BINARY))
    with reading(box, script) as (command, name):
        sending = Background(lambda: sent(box, name, data))
        for _ in range(3):
            backup(box)
        assert not sending.ended and not command.ended
        sh(box, "touch go")
        assert sending.result()
        assert command.result().stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_input_that_is_cut_off_stops_its_command(box: LocalSandbox) -> None:
    with reading(box, "cat; echo whole > done; sleep 600") as (command, name):
        assert box.send_input(name, WRITER, b"a part")
        box.cut_input(name, "somebody else")
        assert not command.ended
        box.cut_input(name, WRITER)
        error = command.error()
        assert isinstance(error, ExecStoppedError) and error.context == {"reason": "INPUT_CUT_OFF"}
    assert sh(box, "ls") == ""


@pytest.mark.parametrize("pieces", [[], [b"a part"]])
def test_a_writer_that_is_not_heard_of_any_more_cuts_the_input_off(kernel_node: Node, pieces: list[bytes]) -> None:
    kernel_node.adjust(exec=ExecLimits(input_pause_s=0.2))
    box = kernel_node.sandbox()
    with reading(box, "cat") as (command, name):
        for piece in pieces:
            box.send_input(name, WRITER, piece)
        error = command.error()
    assert isinstance(error, ExecStoppedError) and error.context == {"reason": "INPUT_CUT_OFF"}


def test_input_that_was_sent_whole_cannot_be_cut_off(box: LocalSandbox) -> None:
    with reading(box, "cat; until [ -e go ]; do sleep 0.02; done") as (command, name):
        assert sent(box, name, b"whole")
        box.cut_input(name, WRITER)
        sh(box, "touch go")
        assert command.result().stdout == b"whole"


def test_only_a_command_that_takes_input_gets_it_from_one_writer(box: LocalSandbox) -> None:
    with pytest.raises(CommandNotFoundError):
        box.send_input("no-such-command", WRITER, b"x")
    with (
        running(box, ExecRequest(argv=["sh", "-c", "echo; sleep 600"])) as (_, name),
        pytest.raises(CommandNotFoundError),
    ):
        box.send_input(name, WRITER, b"x")
    with reading(box, "cat") as (command, name):
        assert box.send_input(name, WRITER, b"mine")
        for act in (lambda: box.send_input(name, "another", b"x"), lambda: box.end_input(name, "another")):
            with pytest.raises(InputTakenError):
                act()
        box.end_input(name, WRITER)
        assert command.result().stdout == b"mine"


def test_nothing_is_left_of_many_inputs(box: LocalSandbox) -> None:
    run(box, "cat", stdin=b"x")
    before = pipes_and_events()
    for _ in range(5):
        run(box, "true", stdin=b"x" * MAX_INPUT_BYTES)
        with reading(box, "cat") as (_, name):
            box.send_input(name, WRITER, b"x")
    assert wait_until(lambda: pipes_and_events() <= before)


def pipes_and_events() -> set[str]:
    """This process's pipes, and its number of event files, which have no names."""
    targets = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/self/fd/{fd}"))
    events = [f"event {number}" for number in range(targets.count("anon_inode:[eventfd]"))]
    return {target for target in targets if target.startswith("pipe:")} | set(events)
