"""Runs a tool in a box, and tells the tool's own failure from a failure of the box or the node.

A tool that was killed, or got no memory, says nothing about its input. So each failure of the node has an error of its
own, and only a tool that ran to its own end gives a result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from actors.node import process
from actors.node.bubblewrap import Bind, Box, Identity, boxed, ran
from actors.node.errors import BoxError, NoMemoryLeftError, NoProcessesLeftError, ToolKilledError
from actors.node.process import Ended, printable

_SIGNALLED = 128
"""Bubblewrap's exit status is this plus the number of the signal that ended its command. Source: bwrap(1) 0.8."""
_NO_MEMORY = (b"Out of memory", b"Cannot allocate memory", b"failed to allocate", b"failed to map segment")
_NO_PROCESSES = (b"Failed to create thread", b"Resource temporarily unavailable", b"Cannot fork")


def run_boxed(
    box: Box,
    command: Sequence[str],
    *,
    identity: Identity,
    timeout_s: float,
    cwd: str = "/",
    binds: Sequence[Bind] = (),
    on_stdout: Callable[[bytes], None] | None = None,
    cancelled: threading.Event | None = None,
) -> Ended:
    """Runs a tool in a box to its own end. Returns its exit status and output; a non-zero status is no error.

    Ends the tool early, without an error, when `cancelled` is set.

    Raises:
        BoxError: the box could not be built; the tool did not run.
        ToolKilledError, NoMemoryLeftError, NoProcessesLeftError: the node did not let the tool finish.
        ToolMissingError, ToolTimeoutError: as `process.run`.
    """
    with boxed(box, command, identity=identity, cwd=cwd, binds=binds, with_status=True) as ready:
        ended = process.run(
            ready.argv, timeout_s=timeout_s, pass_fds=ready.fds, on_stdout=on_stdout, cancelled=cancelled
        )
    assert ready.status is not None
    with ready.status:
        if cancelled is not None and cancelled.is_set():
            return ended
        has_run = ran(ready.status)
    check_undisturbed(ended, tool=command[0], has_run=has_run)
    return ended


def check_undisturbed(ended: Ended, *, tool: str, has_run: bool = True) -> None:
    """Raises a NodeError unless a tool ran to its own end. `has_run` is False if its box could not be built.

    Raises:
        BoxError, ToolKilledError, NoMemoryLeftError, NoProcessesLeftError: see `run_boxed`.
    """
    said = printable(ended.stderr)
    if is_signalled(ended.status):
        raise ToolKilledError(f"{tool} was ended by signal {_signal(ended.status)}: {said}")
    if any(words in ended.stderr for words in _NO_MEMORY):
        raise NoMemoryLeftError(f"{tool} got no memory: {said}")
    if any(words in ended.stderr for words in _NO_PROCESSES):
        raise NoProcessesLeftError(f"{tool} could start no process: {said}")
    if not has_run:
        raise BoxError(f"No box could be built for {tool}: {said}", hint="Run `holdfast doctor` on the node.")


def is_signalled(status: int) -> bool:
    """Tells from an exit status whether a signal ended a tool, or its box."""
    return status < 0 or status > _SIGNALLED


def _signal(status: int) -> int:
    return -status if status < 0 else status - _SIGNALLED
