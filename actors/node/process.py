"""The one place where the node's tools are started.

A tool gets a fixed, empty environment (never the actor's), no inherited file descriptors but those named,
its own session, and a time limit on its whole process group.
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
    """How a tool ended. `stdout` and `stderr` are cut to their last 64 KiB."""

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
    """Starts a tool in a session of its own. A `umask` of -1 is this process's own.

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
    """Starts a tool whose output goes into pipes of the user `owner`, with the usual umask.

    So a process of that user can open /dev/stdout and /dev/stderr, which is another open(2) of the pipe, and checked
    like one of a file. Raises ToolMissingError.

    Source: pipe(7) and proc_pid_fd(5).
    """
    with ExitStack() as not_started, ExitStack() as given:
        out, err = _Pipe(owner, not_started, given), _Pipe(owner, not_started, given)
        child = start(argv, pass_fds=pass_fds, stdin=stdin, stdout=out.given, stderr=err.given, umask=_UMASK)
        child.stdout, child.stderr = out.file, err.file
        not_started.pop_all()
    return child


class _Pipe:
    """A pipe of a user: the file that reads from it, and the descriptor that is given away."""

    def __init__(self, owner: int, not_started: ExitStack, given: ExitStack) -> None:
        reading, self.given = os.pipe()
        self.file = not_started.enter_context(os.fdopen(reading, "rb"))
        given.callback(os.close, self.given)
        os.fchown(self.given, owner, owner)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a tool and all that it started, and waits for it.

    What it started may be there though itself is dead: that counts as long as nobody has waited for it, since its pid,
    which names the group, cannot be another's until then.
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
        on_stdout: is given each piece of the output as it comes.
        cancelled: when set, the tool is killed within 0.1 s.

    Raises:
        ToolMissingError: the program is not installed.
        ToolTimeoutError: it ran longer than `timeout_s`; its process group has been killed.
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
    except RuntimeError as e:  # what Python makes of EAGAIN
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
        ToolError: it exited with another status than 0; the message holds the end of its stderr.
        ToolMissingError, ToolTimeoutError: as `run`.
    """
    ended = run(argv, timeout_s=timeout_s, cwd=cwd)
    if ended.status != 0:
        raise ToolError(f"{argv[0]} failed with status {ended.status}: {printable(ended.stderr)}")
    return ended.stdout


def printable(output: bytes) -> str:
    """The end of a tool's output as one safe line: control bytes escaped, at most 300 characters."""
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
