"""Signals, umask and standard streams of a starting command are the defaults, whatever its actor has."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.sandboxes import Node, hydrate, run, sh
from tests.support.signals import disturbed_signals

CHANGEABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGALRM, signal.SIGCHLD}
"""Signals that a process can block and ignore, except two: the test's own time limit needs SIGALRM, and waiting for a
child needs SIGCHLD."""
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM, signal.SIGRTMIN)


@pytest.fixture
def disturbed() -> Iterator[None]:
    """Blocks every signal in this process, ignores some, and sets a umask that gives nobody permissions."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in IGNORED}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, CHANGEABLE)
    umask = os.umask(0o777)
    yield
    os.umask(umask)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("argv", [("grep", "^Sig", "/proc/self/status"), ("/tmp/a=b", "^Sig", "/proc/self/status")])
def test_a_command_starts_with_default_signals(kernel_node: Node, disturbed: None, argv: tuple[str, ...]) -> None:
    box = kernel_node.sandbox()
    sh(box, "ln -s /usr/bin/grep /tmp/a=b")
    ended = run(box, *argv)
    fields = dict(line.split(":\t") for line in ended.stdout.decode().splitlines())
    assert disturbed_signals(fields) == (0, 0), ended


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "PIPE", "RTMIN"])
def test_a_signal_ends_a_command(kernel_node: Node, disturbed: None, name: str) -> None:
    # The command is not in the background: a shell makes background commands ignore SIGINT and SIGQUIT.
    ended = run(kernel_node.sandbox(), "sh", "-c", f"sh -c 'kill -s {name} $$; sleep 60'; exit $?", timeout_ms=60_000)
    assert ended.exit_code == 128 + signal.Signals[f"SIG{name}"], ended


def test_a_command_can_be_timed_out_by_sigint(kernel_node: Node, disturbed: None) -> None:
    ended = run(kernel_node.sandbox(), "timeout", "-s", "INT", "0.2", "sleep", "60", timeout_ms=60_000)
    assert ended.exit_code == 124, ended


def test_a_command_has_the_usual_umask(kernel_node: Node, disturbed: None) -> None:
    assert sh(kernel_node.sandbox(), "umask; touch file; stat -c %a file") == "0022\n644\n"


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/$$/fd/1"])
def test_standard_output_can_be_opened_by_name(kernel_node: Node, path: str) -> None:
    ended = run(kernel_node.sandbox(), "sh", "-c", f"echo 1; echo 2 > {path}; echo 3 >> {path}; echo 4 | tee {path}")
    assert (ended.exit_code, ended.stderr) == (0, b"")
    assert ended.stdout.startswith(b"1\n2\n3\n") and ended.stdout.count(b"4\n") == 2


@pytest.mark.parametrize("path", ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"])
def test_standard_error_can_be_opened_by_name(kernel_node: Node, path: str) -> None:
    ended = run(kernel_node.sandbox(), "sh", "-c", f"echo to-stdout; echo to-stderr > {path}")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, b"to-stdout\n", b"to-stderr\n")


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "/dev/null"])
def test_standard_input_can_be_opened_by_name_and_is_empty(kernel_node: Node, path: str) -> None:
    assert sh(kernel_node.sandbox(), f"wc -c < {path}; cat {path}; cat") == "0\n"


def test_streams_stay_open_for_a_commands_child(kernel_node: Node) -> None:
    script = "(echo out > /dev/stdout; echo err > /dev/stderr) | sed s/^/piped-/"
    ended = run(kernel_node.sandbox(), "bash", "-c", f"set -o pipefail; {script}; exec >/tmp/log; echo x >/dev/stdout")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, b"piped-out\n", b"err\n")


def test_files_are_unpacked_with_their_modes_whatever_the_umask(kernel_node: Node, disturbed: None) -> None:
    box = kernel_node.sandbox()
    sh(box, "echo x > file; chmod 751 file")
    tar = b"".join(box.persist("a-name"))
    sh(box, "rm file")
    hydrate(box, tar)
    assert sh(box, "stat -c %a file") == "751\n"
