"""The news that a sandbox is not what it was: how they come from its actor to whoever made the call.

An actor keeps them until a caller was told for sure. The caller's side asks for them after the first call to an actor
that may have some. A gateway collects what its request hears, and says when its answer has carried it; any other caller
finds it in the log and in `Sandbox.notice`, and counts as told.
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
    """News of a sandbox that came back. `told` is to be called once somebody was told; it returns at once."""

    sandbox: str
    recovery: Recovery
    told: Callable[[], None]


_collected: ContextVar[list[Notice] | None] = ContextVar("holdfast_notices", default=None)


@contextmanager
def collecting() -> Iterator[list[Notice]]:
    """Collects the notices that are heard within the block in the list that it gives, and nowhere else."""
    heard: list[Notice] = []
    token = _collected.set(heard)
    try:
        yield heard
    finally:
        _collected.reset(token)


def hear(notice: Notice) -> None:
    """Hands the news to whoever collects them; otherwise logs them, which tells the caller."""
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
    notice.told()
