"""Notices of a sandbox's recovery, on their way from its actor to the caller. Runs in the caller's process.

An actor keeps its notice until a caller has received it for sure. `actors.rpc` asks for it after the first call to an
actor that may have one. A gateway collects the notices of a request, and confirms them when its answer has carried
them. Any other caller finds the notice in the log and in `Sandbox.notice`; it is confirmed at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from actors.models import Recovery

logger = logging.getLogger("holdfast")


@dataclass(frozen=True, slots=True)
class Notice:
    """Notice that a sandbox was recovered. Call `acknowledge` once the caller has it; it returns at once."""

    sandbox: str
    recovery: Recovery
    acknowledge: Callable[[], None]


_collected: ContextVar[list[Notice] | None] = ContextVar("holdfast_notices", default=None)


@contextmanager
def collecting() -> Iterator[list[Notice]]:
    """Collects the notices that arrive within the block in the list that it yields, and logs none of them."""
    heard: list[Notice] = []
    token = _collected.set(heard)
    try:
        yield heard
    finally:
        _collected.reset(token)


def hear(notice: Notice) -> None:
    """Adds the notice to the list of `collecting`; outside of one, logs and confirms it."""
    heard = _collected.get()
    if heard is not None:
        heard.append(notice)
        return
    came_back = ", ".join(f"{row.dir} as of {row.taken_at:%Y-%m-%d %H:%M:%S}" for row in notice.recovery.directories)
    logger.warning(
        "%s was recovered after the loss of its node. From backups: %s. Lost, since it was in no backup: %s.",
        notice.sandbox,
        came_back or "nothing",
        ", ".join(notice.recovery.lost) or "nothing that is known of",
    )
    notice.acknowledge()
