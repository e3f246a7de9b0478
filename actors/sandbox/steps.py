"""The steps of the backup and restore protocols, in order. A process may die before or after any step: nothing is lost.

`tests/faults` kills an actor before and after each step here, and DESIGN.md says what each step leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class CreateStep(StrEnum):
    """The steps of creating a backup."""

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


Step = CreateStep | RestoreStep
Watcher = Callable[[Step, str], None]
_watchers: list[Watcher] = []


def watch(watcher: Watcher) -> None:
    """Calls `watcher` with "before" and "after" at each later step of this process."""
    _watchers.append(watcher)


@contextmanager
def step(name: Step) -> Iterator[None]:
    """Runs the block as one step: calls the watchers before and after it."""
    for watcher in _watchers:
        watcher(name, "before")
    yield
    for watcher in _watchers:
        watcher(name, "after")
