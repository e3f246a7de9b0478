"""FUSE daemons as children of this process (an actor, or the trial of a driver), started and watched by one thread.

They run in the foreground and are killed when this process ends (PR_SET_PDEATHSIG), so none outlives its actor. All
writes that they have acknowledged are in the upper directory, which the next actor mounts again. The kernel sends the
signal when the *thread* that forked ends, so one thread starts them all and lives as long as the process.
Source: PR_SET_PDEATHSIG(2const), setpriv(1).
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import select
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from actors.logs import log
from actors.node import mountinfo, process
from actors.node.errors import MountError, NodeError
from actors.node.memory import Rank, give_rank

_STDERR_BYTES = 4096
_POLL_MS = 20


class Daemon:
    """One FUSE daemon. `exited` is set once it is dead and reaped."""

    def __init__(self, child: subprocess.Popen[bytes], name: str, on_exit: Callable[[Daemon], None]) -> None:
        self.name = name
        self.pid = child.pid
        self.exited = threading.Event()
        self._child = child
        self._pidfd = os.pidfd_open(child.pid)
        self._lock = threading.Lock()
        self._stderr = bytearray()
        self._on_exit = on_exit

    @property
    def complaint(self) -> str:
        """The end of the daemon's stderr, as one line."""
        return process.printable(bytes(self._stderr))

    @property
    def is_dead(self) -> bool:
        """True if the daemon has ended, reaped or not."""
        with self._lock:
            if self.exited.is_set():
                return True
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            return bool(ended.poll(0))

    def kill(self) -> None:
        """Kills the daemon at once, without waiting. Uses its pidfd, which never refers to another process."""
        with self._lock:
            if not self.exited.is_set():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def wait_until_serving(self, point: Path, *, timeout_s: float) -> None:
        """Waits until `point` is mounted and answers.

        Raises:
            MountError: the daemon exited, or the mount did not appear or answer in time.
        """
        deadline = time.monotonic() + timeout_s
        with open("/proc/self/mountinfo", "rb") as table:
            changes = select.poll()
            changes.register(table, select.POLLPRI | select.POLLERR)
            while mountinfo.find(point) is None:
                if self.exited.is_set():
                    raise MountError(f"{self.name} exited with status {self._child.returncode}: {self.complaint}")
                if time.monotonic() >= deadline:
                    raise MountError(f"{self.name} did not mount within {timeout_s:g} s: {self.complaint}")
                changes.poll(_POLL_MS)
        wrong = mountinfo.probe(point, timeout_s=max(0.1, deadline - time.monotonic()))
        if wrong is not None:
            raise MountError(f"The mount of {self.name} does not work: {wrong}. {self.complaint}")

    def _watch(self, selector: selectors.BaseSelector) -> None:
        selector.register(self._pidfd, selectors.EVENT_READ, lambda: self._reap(selector))
        if self._child.stderr is not None:
            os.set_blocking(self._child.stderr.fileno(), False)
            selector.register(self._child.stderr, selectors.EVENT_READ, lambda: self._read_stderr(selector))

    def _read_stderr(self, selector: selectors.BaseSelector) -> bool:
        """Reads the next piece of the daemon's stderr. Returns True if there may be more."""
        stderr = self._child.stderr
        if stderr is None or stderr.closed:
            return False
        try:
            data = os.read(stderr.fileno(), _STDERR_BYTES)
        except BlockingIOError:
            return False
        self._stderr += data
        del self._stderr[:-_STDERR_BYTES]
        if not data:
            selector.unregister(stderr)
            stderr.close()
        return bool(data)

    def _reap(self, selector: selectors.BaseSelector) -> None:
        while self._read_stderr(selector):  # to the end: the last lines say most
            pass
        if self._child.stderr is not None and not self._child.stderr.closed:
            selector.unregister(self._child.stderr)
            self._child.stderr.close()
        self._child.wait()
        selector.unregister(self._pidfd)
        with self._lock:
            self.exited.set()
            os.close(self._pidfd)
        self._on_exit(self)


class Daemons:
    """Starts daemons and reports their ends. Its thread starts with the first daemon."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._wake = -1
        self._starting = threading.Lock()

    def start(self, argv: Sequence[str], *, name: str, cwd: Path, on_exit: Callable[[Daemon], None]) -> Daemon:
        """Starts a daemon.

        Args:
            on_exit: called once, in the watching thread, when the daemon has ended for any reason. It has to return
                at once.

        Raises:
            ToolMissingError: the program is not installed.
        """
        self._ensure_thread()
        started: Future[Daemon] = Future()

        def fork() -> None:
            try:
                started.set_result(self._fork(argv, name, cwd, on_exit))
            except (NodeError, OSError) as e:
                started.set_exception(e)

        self._requests.put(fork)
        os.eventfd_write(self._wake, 1)
        return started.result()

    def _ensure_thread(self) -> None:
        with self._starting:
            if self._wake < 0:
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._selector.register(self._wake, selectors.EVENT_READ, self._serve_requests)
                threading.Thread(target=self._run, name="fuse-daemons", daemon=True).start()

    def _fork(self, argv: Sequence[str], name: str, cwd: Path, on_exit: Callable[[Daemon], None]) -> Daemon:
        child = process.start(argv, stdout=subprocess.DEVNULL, cwd=str(cwd))
        give_rank(Rank.DAEMON, pid=child.pid)
        daemon = Daemon(child, name, on_exit)
        daemon._watch(self._selector)
        return daemon

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                registered = self._selector.get_map().get(key.fd)
                if registered is None or registered.data is not key.data:
                    continue  # closed by an earlier event of this round
                try:
                    key.data()
                except Exception as e:
                    log.error("an event of a FUSE daemon could not be handled", error=type(e).__name__)

    def _serve_requests(self) -> None:
        os.eventfd_read(self._wake)
        while not self._requests.empty():
            self._requests.get()()


@functools.cache
def of_this_process() -> Daemons:
    """The `Daemons` of this process, one thread for all its layers."""
    return Daemons()
