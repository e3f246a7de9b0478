"""Tools that run in a box, and how their end is told from that of the box, and from what the node did to them.

A tool that was killed, or got no memory, has said nothing about what it was working on. So each circumstance of the
node has an error of its own here, and only a tool that ran to its own end gives a result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from actors.node import process
from actors.node.bubblewrap import Bind, Box, Identity, boxed, ran
from actors.node.errors import BoxError, NoMemoryLeftError, NoProcessesLeftError, ToolKilledError
from actors.node.process import Ended, printable

_SIGNALLED = 128
"""Added by bubblewrap to the number of a signal that ended its command. Source: bwrap(1) 0.8, as in a shell."""
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
    """Runs a tool in a box to its own end, and returns how it ended, whatever its exit status.

    Cut short, without an error, when `cancelled` is set.

    Raises:
        BoxError: no box could be built around it; it did not run.
        ToolKilledError, NoMemoryLeftError, NoProcessesLeftError: the node did not let it finish.
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
    """Raises NodeError unless a tool came to its own end. `has_run` is False if its box was not built around it.

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
    """Whether a tool, or the box around it, was ended by a signal."""
    return status < 0 or status > _SIGNALLED


def _signal(status: int) -> int:
    return -status if status < 0 else status - _SIGNALLED
