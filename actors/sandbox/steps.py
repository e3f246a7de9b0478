"""The steps of the protocols, in order. A process may die before or after any step: nothing is lost.

`tests/faults` kills a process before and after each step here, and docs/design says what each step leaves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class CreateStep(StrEnum):
    """The steps of creating a backup."""

    HOLD = "hold"
    ARCHIVE = "archive"
    BEGIN = "begin"
    UPLOAD = "upload"
    CLAIM = "claim"
    COMMIT = "commit"
    CHECKPOINT = "checkpoint"
    CACHE = "cache"


class RestoreStep(StrEnum):
    """The steps of restoring a backup, as an overlay or a copy."""

    METADATA = "metadata"
    FETCH = "fetch"
    PREPARE = "prepare"
    STOP = "stop"
    UNMOUNT = "unmount"
    SHOW = "show"
    RECORD = "record"
    DISCARD = "discard"
    REPORT = "report"


class RetentionStep(StrEnum):
    """The steps of a run of retention. The last two are taken for each batch of backups."""

    DECIDE = "decide"
    CHECK = "check"
    DELETE = "delete"


Step = CreateStep | RestoreStep | RetentionStep
_log = logging.getLogger(__name__)


@contextmanager
def step(name: Step) -> Iterator[None]:
    """Runs the block as one step. Logs "before" and "after" it, with the step, at the debug level."""
    _log.debug("%s %s", "before", name)
    yield
    _log.debug("%s %s", "after", name)
