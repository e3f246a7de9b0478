"""Stops programs that a process starts at each of their system calls, from outside.

Source: ptrace(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_SEIZE, _INTERRUPT, _SYSCALL, _CONTINUE, _DETACH = 0x4206, 0x4207, 24, 7, 17
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10
"""Marks stops at system calls as such, and follows forked or cloned children, and execs."""
_AT_SYSCALL = signal.SIGTRAP | 0x80
_EVERY_CHILD = 0x40000000
"""Waits for threads and processes alike. Source: __WALL, waitpid(2)."""
_LET_GO_S = 30.0

_libc = ctypes.CDLL(None, use_errno=True)


class Steps:
    """Counts the system calls of programs with one name that a child process of ours starts."""

    def __init__(self, pid: int, program: str) -> None:
        """Follows the main thread of the child `pid`, and its children from now on."""
        self._parent = pid
        self._program = program
        self._followed = {pid}
        self._ask(_SEIZE, pid, _OPTIONS)

    def kill_at(self, step: int) -> bool:
        """Kills the child at this step of the programs, and lets the programs go on; False if they have fewer steps."""
        count = 0
        while True:
            pid, status = os.waitpid(-1, _EVERY_CHILD)
            if not os.WIFSTOPPED(status):
                self._followed.discard(pid)
                if pid == self._parent:
                    self._let_go()
                    return False
                continue
            self._followed.add(pid)
            stopped_by = os.WSTOPSIG(status)
            count += stopped_by == _AT_SYSCALL
            if count == step:
                os.kill(self._parent, signal.SIGKILL)
                self._ask(_DETACH, pid)
                self._followed.discard(pid)
                self._let_go()
                return True
            self._resume(pid, status)

    def _resume(self, pid: int, status: int) -> None:
        is_signal = status >> 16 == 0 and os.WSTOPSIG(status) not in (_AT_SYSCALL, signal.SIGTRAP)
        steps = pid != self._parent and _name(pid) == self._program
        self._ask(_SYSCALL if steps else _CONTINUE, pid, os.WSTOPSIG(status) if is_signal else 0)

    def _let_go(self) -> None:
        """Stops following all remaining processes, and reaps the child."""
        for pid in self._followed:
            self._ask(_INTERRUPT, pid)
        deadline = time.monotonic() + _LET_GO_S
        while self._followed and time.monotonic() < deadline:
            try:
                pid, status = os.waitpid(-1, _EVERY_CHILD | os.WNOHANG)
            except ChildProcessError:
                return
            if pid and os.WIFSTOPPED(status):
                self._ask(_DETACH, pid)
            self._followed.discard(pid)
        assert not self._followed, self._followed

    def _ask(self, request: int, pid: int, data: int = 0) -> None:
        """Sends a ptrace request. Ignores errors, since the process may just have been killed."""
        _libc.ptrace(request, pid, None, ctypes.c_void_p(data))


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
