"""The command runner: the one place where the node's tools are started.

A tool gets a fixed, minimal environment (never the actor's), no inherited file descriptors but those named, and
a session of its own. `run` also puts a time limit on its whole process group.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

from actors.node.errors import NoProcessesLeftError, ToolError, ToolMissingError, ToolTimeoutError

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}
_UMASK = 0o022
_KEPT_BYTES = 64 * 1024
_POLL_MS = 100


@dataclass(frozen=True, slots=True)
class Ended:
    """The exit status and the output of a tool. `stdout` and `stderr` are cut to their last 64 KiB."""

    status: int
    stdout: bytes
    stderr: bytes


def start(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = subprocess.PIPE,
    stderr: int | None = subprocess.PIPE,
    cwd: str | None = None,
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    """Starts a tool in a session of its own. A `umask` of -1 keeps this process's umask.

    Raises:
        ToolMissingError: the program is not installed.
    """
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=ENVIRONMENT,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            umask=umask,
        )
    except FileNotFoundError:
        raise ToolMissingError(f"{argv[0]} is not installed.", hint="Run `holdfast doctor`.") from None


def start_for(
    owner: int, argv: Sequence[str], *, pass_fds: Sequence[int] = (), stdin: int | None = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Starts a tool whose pipes belong to the user `owner`, with a umask of 022. Its input is one if `stdin` is PIPE.

    A process of that user can then open /dev/stdin, /dev/stdout and /dev/stderr: the kernel opens the pipe once more,
    and checks its permissions like a file's. Raises ToolMissingError.

    Source: pipe(7) and proc_pid_fd(5).
    """
    with ExitStack() as not_started, ExitStack() as given:
        out, err = _Pipe(owner, not_started, given), _Pipe(owner, not_started, given)
        fed = _Pipe(owner, not_started, given, inwards=True) if stdin == subprocess.PIPE else None
        child = start(
            argv,
            pass_fds=pass_fds,
            stdin=fed.given if fed else stdin,
            stdout=out.given,
            stderr=err.given,
            umask=_UMASK,
        )
        child.stdin, child.stdout, child.stderr = fed.file if fed else None, out.file, err.file
        not_started.pop_all()
    return child


class _Pipe:
    """A pipe that belongs to a user: our file, and the descriptor for the child, which reads if it leads `inwards`."""

    def __init__(self, owner: int, not_started: ExitStack, given: ExitStack, *, inwards: bool = False) -> None:
        reading, writing = os.pipe()
        ours, self.given = (writing, reading) if inwards else (reading, writing)
        self.file: IO[bytes] = not_started.enter_context(os.fdopen(ours, "wb" if inwards else "rb"))
        given.callback(os.close, self.given)
        os.fchown(self.given, owner, owner)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a tool and every process in its group, and waits for the tool.

    The group may outlive the tool. Until somebody waits for the dead tool, its pid, which names the group, cannot
    belong to another process, so it is safe to kill the group.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    pass_fds: Sequence[int] = (),
    cwd: str | None = None,
    on_stdout: Callable[[bytes], None] | None = None,
    cancelled: threading.Event | None = None,
) -> Ended:
    """Runs a tool to its end and returns how it ended, whatever its exit status.

    Args:
        on_stdout: called with each piece of the output as it arrives.
        cancelled: when set, the tool is killed within 0.1 s.

    Raises:
        ToolMissingError: the program is not installed.
        ToolTimeoutError: it ran longer than `timeout_s`; its process group has been killed.
        NoProcessesLeftError: no thread could be started to read its output; it has been killed.
    """
    process = start(argv, pass_fds=pass_fds, cwd=cwd)
    out, err = bytearray(), bytearray()
    readers = [
        threading.Thread(target=_drain, args=(process.stdout, out, on_stdout), daemon=True),
        threading.Thread(target=_drain, args=(process.stderr, err, None), daemon=True),
    ]
    started: list[threading.Thread] = []
    try:
        for reader in readers:
            reader.start()
            started.append(reader)
        _wait(process, timeout_s, cancelled)
    except RuntimeError as e:  # Python raises it where a thread's start fails with EAGAIN
        raise NoProcessesLeftError(f"{argv[0]} could not be watched: {e}.") from None
    except subprocess.TimeoutExpired:
        raise ToolTimeoutError(f"{argv[0]} took longer than {timeout_s:g} s and was killed.") from None
    finally:
        kill_group(process)
        for reader in started:
            reader.join()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return Ended(process.returncode, bytes(out), bytes(err))


def check(argv: Sequence[str], *, timeout_s: float = 30.0, cwd: str | None = None) -> bytes:
    """Runs a tool that has to succeed and returns its output.

    Raises:
        ToolError: its exit status is not 0; the message holds the end of its stderr.
        ToolMissingError, ToolTimeoutError: as `run`.
    """
    ended = run(argv, timeout_s=timeout_s, cwd=cwd)
    if ended.status != 0:
        raise ToolError(f"{argv[0]} failed with status {ended.status}: {printable(ended.stderr)}")
    return ended.stdout


def printable(output: bytes) -> str:
    """The last 300 bytes of a tool's output as one safe line: everything but printable ASCII is escaped."""
    return output[-300:].decode("utf-8", "backslashreplace").strip().encode("unicode_escape").decode("ascii")


def _wait(process: subprocess.Popen[bytes], timeout_s: float, cancelled: threading.Event | None) -> None:
    deadline = time.monotonic() + timeout_s
    pidfd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not poll.poll(_POLL_MS):
            if cancelled is not None and cancelled.is_set():
                return
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(process.args, timeout_s)
    finally:
        os.close(pidfd)


def _drain(pipe: IO[bytes], kept: bytearray, on_data: Callable[[bytes], None] | None) -> None:
    with pipe:
        while data := os.read(pipe.fileno(), 65_536):
            if on_data is not None:
                on_data(data)
            kept += data
            del kept[: max(0, len(kept) - _KEPT_BYTES)]
