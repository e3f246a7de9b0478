"""The question to a bucket that may be slow or away: its answer, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from actors.logs import log
from storage.errors import StorageError
from storage.time_limit import within_moments

T = TypeVar("T")


def answered_in_moments(ask: Callable[[], T]) -> T | None:
    """Returns the bucket's answer; None if `ask` raises StorageError, as it does without an answer in `MOMENTS_S`."""
    try:
        with within_moments():
            return ask()
    except StorageError as e:
        log.warning("bucket_did_not_answer", error=type(e).__name__, detail=str(e))
        return None
