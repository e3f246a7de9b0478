"""Time limits for questions to the bucket that are asked on the way. They hold nothing up when it does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from actors.logs import log
from storage.errors import StorageError

MOMENTS_S = 3.0
"""Longer than any bucket takes that is well."""
T = TypeVar("T")


def within_moments(act: Callable[[], None]) -> None:
    """Does it in a thread of its own, and waits for that a few moments; it then goes on in the background."""
    acting = threading.Thread(target=act, name="bucket", daemon=True)
    acting.start()
    acting.join(MOMENTS_S)


def answered_in_moments(ask: Callable[[], T]) -> T | None:
    """What the bucket answers, or None if it does not, or not in time."""
    answers: list[T] = []

    def act() -> None:
        try:
            answers.append(ask())
        except StorageError as e:
            log.warning("bucket_did_not_answer", error=type(e).__name__, detail=str(e))

    within_moments(act)
    return answers[0] if answers else None
