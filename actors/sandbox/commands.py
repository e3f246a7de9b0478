"""Runs a sandbox's commands: each in a box of its own, all in the sandbox's control group."""

from __future__ import annotations

import os
import resource
import selectors
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from actors.config import ExecLimits
from actors.errors import (
    INPUT_CUT_OFF,
    CommandNotFoundError,
    ExecOutputLimitError,
    ExecStoppedError,
    ExecTimeoutError,
    HoldfastError,
    MountLostError,
    SandboxUnavailableError,
)
from actors.models import ExecEvent, ExecRequest, Exit, Output, Started
from actors.node import process
from actors.node.bubblewrap import Box, Identity, boxed, ran
from actors.node.cgroup import Cgroup
from actors.node.errors import CgroupError, NodeError
from actors.node.opening import Opening, opened
from actors.sandbox.command_errors import cut_off, find_disturbance, not_begun, not_started
from actors.sandbox.command_input import CommandInput
from actors.sandbox.tree_lock import TreeLock

_PIECE_BYTES = 64 * 1024
_STOPS_REMEMBERED = _INPUTS_REMEMBERED = 1000
_REQUEST = "the request"
"""The writer of an input that came with its command."""
_READING_ENDS_S = 5.0
"""A pipe whose process was killed ends at once, unless another process has been given it."""


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    status: IO[bytes]
    error: HoldfastError | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    readers: list[threading.Thread] = field(default_factory=list)
    input: CommandInput | None = None

    def stop(self, error: HoldfastError) -> None:
        """Kills the command. Its caller gets `error`, unless an earlier stop has set another."""
        with self.lock:
            self.error = self.error or error
        process.kill_group(self.process)

    def beside(self, act: Callable[[], None]) -> threading.Thread:
        """Starts a thread that uses a pipe of the process. The pipe is closed after that."""
        thread = threading.Thread(target=act, name="pipe", daemon=True)
        thread.start()
        self.readers.append(thread)
        return thread


@dataclass(frozen=True, slots=True)
class RunningTool:
    """One of our tools, running over the tree."""

    _running: _Running

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process of the tool's box."""
        return self._running.process

    def beside(self, read: Callable[[], None]) -> threading.Thread:
        """Starts a thread that reads a pipe of the process to its end. The pipe is closed after that."""
        return self._running.beside(read)

    def check_undisturbed(self, said: bytes) -> None:
        """Raises unless the tool, which has ended with the output `said`, came to its own end. Call it only once.

        Raises:
            ExecError: it was stopped from outside.
            SandboxUnavailableError: its box could not be built, or a signal ended it; the context has the reason.
        """
        if self._running.error is not None:
            raise self._running.error
        has_run = ran(self._running.status)
        disturbance = find_disturbance(said, status=self.process.returncode, has_run=has_run)
        if disturbance is not None:
            raise disturbance


class Commands:
    """Starts, watches and stops the commands of one sandbox."""

    def __init__(
        self,
        box: Box,
        cgroup: Cgroup,
        *,
        limits: ExecLimits,
        tree_lock: TreeLock,
        has_lost_mount: Callable[[], bool] = lambda: False,
    ) -> None:
        """`tree_lock` is held shared while a command starts, so that no command starts during a swap.

        `has_lost_mount` tells whether a file system under the tree is dead or damaged: a command that ended then may
        have read wrong data.
        """
        self._box = box
        self._cgroup = cgroup
        self._limits = limits
        self._tree_lock = tree_lock
        self._has_lost_mount = has_lost_mount
        self._running: dict[str, _Running] = {}
        self._stopped_early: deque[str] = deque(maxlen=_STOPS_REMEMBERED)
        self._inputs_ended: deque[str] = deque(maxlen=_INPUTS_REMEMBERED)
        """The commands that took input and have ended."""
        self._paused_s = 0.0
        self._paused_at: float | None = None
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Number of commands and tools that run now."""
        return len(self._running)

    def run(self, command_id: str, request: ExecRequest) -> Iterator[Started | ExecEvent]:
        """Runs a command; yields its output as it comes, and its exit last. Yields `Started` first if it takes input.

        Abandoning the iterator stops the command.

        Raises:
            FileNotFoundInSandboxError, PathForbiddenError: the working directory cannot be entered. Like every error
                of a command that did not start, this comes before any output.
            ExecError: (one of its kinds) the command was ended from outside.
            SandboxUnavailableError: its box could not be built, or ended before the command; the context has the
                reason.
        """
        timeout_s = min((request.timeout_ms or float("inf")) / 1000, self._limits.timeout_s)
        opening, given = Opening(), request.given_input
        stdin = subprocess.DEVNULL if given is None and not request.stdin_stream else subprocess.PIPE
        with self._started(command_id, opened(request.argv), cwd=request.cwd, env=request.env, stdin=stdin) as running:
            if running.process.stdin is not None:
                running.input = CommandInput(running.process.stdin)
            if running.input is not None and given is not None:
                running.beside(partial(_send_all, running.input, given))
            self._watch(running, timeout_s)
            yield from self._output(running, opening, Started(command_id=command_id) if request.stdin_stream else None)
            status = running.process.wait()
            self._check_undisturbed(running)
            if not ran(running.status):
                raise cut_off() if opening.is_over else not_begun(opening.rest(), status=status, cwd=request.cwd)
            if said := opening.rest():
                yield Output(stream="stderr", data=said)
            yield Exit(exit_code=status if status >= 0 else 128 - status)

    @contextmanager
    def tool(self, name: str, argv: Sequence[str], *, identity: Identity, stdin: int | None) -> Iterator[RunningTool]:
        """Runs one of our tools over the tree, within the block. It is paused and stopped like the sandbox's commands.

        Raises:
            ExecError, SandboxUnavailableError: (after the block) it was stopped from outside, or a mount under it died.
        """
        with self._started(name, list(argv), cwd="/workspace", env={}, identity=identity, stdin=stdin) as running:
            try:
                yield RunningTool(running)
            except HoldfastError:
                self._check_undisturbed(running)
                raise
            running.process.wait()
            self._check_undisturbed(running)

    def _check_undisturbed(self, running: _Running) -> None:
        """Raises the error with which a process was ended from outside, or MountLostError if a mount under it died."""
        lost = self._has_lost_mount()  # read first: a dead mount is mounted anew only after the commands were stopped
        if running.error is not None:
            raise running.error
        if lost:
            raise MountLostError("A file system under the command died or was damaged; it is being mounted anew.")

    def stop(self, command_id: str) -> bool:
        """Stops one command. Returns False if it does not run; it is then killed if it starts later."""
        with self._lock:
            running = self._running.get(command_id)
            if running is None:
                self._stopped_early.append(command_id)
                return False
        running.stop(_on_request())
        return True

    def send_input(self, command_id: str, data: bytes, *, writer: str) -> bool:
        """Passes bytes on to a command; see `CommandInput.write`. Raises CommandNotFoundError."""
        found = self._input_of(command_id)
        return found is not None and found.write(data, writer=writer)

    def end_input(self, command_id: str, *, writer: str) -> None:
        """Ends a command's input; see `CommandInput.end`. Raises CommandNotFoundError."""
        found = self._input_of(command_id)
        if found is not None:
            found.end(writer=writer)

    def cut_input(self, command_id: str, *, writer: str) -> None:
        """Stops a command whose input is cut off: it must not take the part of an input for the whole.

        Does nothing unless the input belongs to this writer and has not ended.
        """
        with self._lock:
            running = self._running.get(command_id)
        if running is not None and running.input is not None and running.input.is_used_by(writer):
            running.stop(_cut_off_input())

    def _input_of(self, command_id: str) -> CommandInput | None:
        """The input of a command; None if the command has ended."""
        with self._lock:
            running = self._running.get(command_id)
            if running is not None and running.input is not None:
                return running.input
            if command_id in self._inputs_ended:
                return None
        raise CommandNotFoundError("No command of this id takes input here.", context={"command_id": command_id[:200]})

    def stop_all(self, error: HoldfastError) -> None:
        """Stops every process of the sandbox; returns when none is left. Raises CgroupError."""
        with self._lock:
            for running in self._running.values():
                running.stop(error)
        self._cgroup.kill()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pauses every process of the sandbox within the block. The pause does not count towards their time limits.

        Raises:
            CgroupError: the processes could not be paused; all of them run on.
        """
        with self._cgroup.frozen():
            self._paused_at = time.monotonic()
            try:
                yield
            finally:
                self._paused_s, self._paused_at = self._paused_so_far(), None

    def _paused_so_far(self) -> float:
        at = self._paused_at
        return self._paused_s + (time.monotonic() - at if at is not None else 0.0)

    @contextmanager
    def _started(
        self,
        name: str,
        argv: list[str],
        *,
        cwd: str,
        env: dict[str, str],
        identity: Identity = Identity.COMMAND,
        stdin: int | None = subprocess.DEVNULL,
    ) -> Iterator[_Running]:
        files = min(self._limits.open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        limits = ["prlimit", f"--nofile={files}", "--core=0", f"--fsize={self._limits.file_bytes}"]
        with self._tree_lock.shared():
            try:
                with boxed(self._box, argv, identity=identity, cwd=cwd, env=env, with_status=True) as ready:
                    assert ready.status is not None
                    entry = self._cgroup.entry([*limits, *ready.argv])
                    child = process.start_for(self._box.user, entry, pass_fds=ready.fds, stdin=stdin)
            except CgroupError:
                raise SandboxUnavailableError(
                    "The sandbox was just closed; try again.", context={"outcome": "not_executed"}
                ) from None
            except (NodeError, OSError) as e:
                raise not_started(e) from None
            running = _Running(child, ready.status)
            with self._lock:
                self._running[name] = running
                if name in self._stopped_early:
                    running.error = _on_request()
                    process.kill_group(child)
        try:
            yield running
        finally:
            running.ended.set()
            process.kill_group(child)
            if running.input is not None:
                running.input.close()
            for reader in running.readers:
                reader.join(_READING_ENDS_S)
            for pipe in (child.stdin, child.stdout, child.stderr, running.status):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # input that a stopped tool did not read
                        pipe.close()
            with self._lock:
                del self._running[name]
                if running.input is not None:
                    self._inputs_ended.append(name)

    def _watch(self, running: _Running, timeout_s: float) -> None:
        """Stops a command when its time is over, or the writer of its input lost, even if nobody reads its output."""
        error = ExecTimeoutError(
            f"The command ran longer than {timeout_s:g} s.", context={"timeout_ms": round(timeout_s * 1000)}
        )
        began = time.monotonic() - self._paused_so_far()

        def watch() -> None:
            while (left_s := began + timeout_s + self._paused_so_far() - time.monotonic()) > 0:
                if running.input is not None:
                    patience_s = self._limits.input_pause_s - running.input.silent_s
                    if patience_s <= 0:
                        running.stop(_cut_off_input())
                        return
                    left_s = min(left_s, patience_s)
                if running.ended.wait(left_s):
                    return
            running.stop(error)

        threading.Thread(target=watch, daemon=True, name="command-watch").start()

    def _output(self, running: _Running, opening: Opening, started: Started | None) -> Iterator[Started | Output]:
        """Yields the output as it comes, and `started` once the command has begun."""
        child, written = running.process, 0
        assert child.stdout is not None and child.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ, "stdout")
            selector.register(child.stderr, selectors.EVENT_READ, "stderr")
            while selector.get_map():
                for key, _ in sorted(selector.select(), key=_errors_first):
                    data = os.read(key.fd, _PIECE_BYTES)
                    if not data:
                        selector.unregister(key.fileobj)
                        continue
                    written += len(data)
                    if written > (limit := self._limits.output_bytes):
                        running.stop(
                            ExecOutputLimitError(
                                f"The command wrote more than {limit} bytes.", context={"limit_bytes": limit}
                            )
                        )
                        return
                    if key.data == "stdout":
                        yield Output(stream="stdout", data=data)
                        continue
                    passed = opening.passed(data)
                    if opening.is_over and started is not None:
                        yield started
                        started = None
                    if passed:
                        yield Output(stream="stderr", data=passed)


def _errors_first(ready: tuple[selectors.SelectorKey, int]) -> bool:
    """The order of streams that have something to read: the opening, on stderr, comes before all output."""
    return bool(ready[0].data != "stderr")


def _send_all(target: CommandInput, data: bytes) -> None:
    target.write(data, writer=_REQUEST)
    target.end(writer=_REQUEST)


def _cut_off_input() -> ExecStoppedError:
    return ExecStoppedError("The command was stopped: its input was cut off.", context={"reason": INPUT_CUT_OFF})


def _on_request() -> ExecStoppedError:
    return ExecStoppedError("The command was stopped on request.")
