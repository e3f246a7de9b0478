"""The steps of the two protocols, in their order. Whatever process dies before or after any of them, nothing is lost.

`tests/faults` kills an actor before and after each step that is named here, and DESIGN.md says what each one leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class CreateStep(StrEnum):
    """Creating a backup."""

    ARCHIVE = "archive"
    BEGIN = "begin"
    UPLOAD = "upload"
    CLAIM = "claim"
    COMMIT = "commit"
    CHECKPOINT = "checkpoint"
    CACHE = "cache"


class RestoreStep(StrEnum):
    """Restoring one: by a mounted layer, or by plain files."""

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
    """From now on tells `watcher` of each step of this process, "before" it and "after" it."""
    _watchers.append(watcher)


@contextmanager
def step(name: Step) -> Iterator[None]:
    """One step is done within the block."""
    for watcher in _watchers:
        watcher(name, "before")
    yield
    for watcher in _watchers:
        watcher(name, "after")
