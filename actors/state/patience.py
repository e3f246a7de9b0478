"""Time limits for requests to the bucket: a call goes on when the answer does not come in time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from actors.logs import log
from storage.errors import StorageError

MOMENTS_S = 3.0
"""Upper bound for the answer of a healthy bucket."""
T = TypeVar("T")


def within_moments(act: Callable[[], None]) -> None:
    """Runs `act` in a thread of its own and waits `MOMENTS_S` for it; after that it goes on in the background."""
    acting = threading.Thread(target=act, name="bucket", daemon=True)
    acting.start()
    acting.join(MOMENTS_S)


def answered_in_moments(ask: Callable[[], T]) -> T | None:
    """Returns the bucket's answer; None if `ask` raises StorageError, or takes longer than `MOMENTS_S`."""
    answers: list[T] = []

    def act() -> None:
        try:
            answers.append(ask())
        except StorageError as e:
            log.warning("bucket_did_not_answer", error=type(e).__name__, detail=str(e))

    within_moments(act)
    return answers[0] if answers else None
