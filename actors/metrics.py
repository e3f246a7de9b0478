"""The metrics that the actors count, and the tallies that hold the counts. A leaf module.

Labels have few values each, and never name a sandbox, a tenant or a process. Actors come and go, so each sandbox's
actor sends its counts to the service's actor, which adds them up. (Ray's own metrics would label every count with the
worker process, and keep those of each process that has ended: new series with every wake, for ever. Measured on 2.60.)
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter with the names of its labels; with `bounds`, a histogram."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper bounds of all buckets but the last."""


CALLS = Metric("holdfast_calls", "Calls that the actors have served", ("kind", "outcome"))
CALL_SECONDS = Metric(
    "holdfast_call_duration_seconds",
    "Time that actors took for a call, from its beginning to the end of its answer",
    ("kind",),
    (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
QUEUE_LENGTH = Metric(
    "holdfast_queue_length",
    "How many calls waited in a lane of a sandbox when one more came",
    ("lane",),
    (0, 1, 2, 4, 8, 16, 32, 64),
)
ARCHIVED_BYTES = Metric("holdfast_archived_bytes", "Bytes of the files that were archived, before compression")
UPLOADED_BYTES = Metric("holdfast_uploaded_bytes", "Bytes of the archives that were uploaded")
DOWNLOADED_BYTES = Metric("holdfast_downloaded_bytes", "Bytes of the archives that were downloaded")
CACHE_LOOKUPS = Metric("holdfast_cache_lookups", "Archives that restores asked the node's cache for", ("result",))
WAKES = Metric("holdfast_wakes", "Sandboxes that were taken up by an actor", ("origin",))
SLEEPS = Metric("holdfast_sleeps", "Sandboxes that gave their process back because nobody called")
DELETED_BACKUPS = Metric("holdfast_deleted_backups", "Backups that the service deleted by itself", ("reason",))
COLLECTIONS = Metric("holdfast_gc_runs", "Collections of the bucket that have ended", ("outcome",))
FREED_BYTES = Metric("holdfast_gc_freed_bytes", "Bytes that collections removed from the bucket")
METRICS = (
    CALLS,
    CALL_SECONDS,
    QUEUE_LENGTH,
    ARCHIVED_BYTES,
    UPLOADED_BYTES,
    DOWNLOADED_BYTES,
    CACHE_LOOKUPS,
    WAKES,
    SLEEPS,
    DELETED_BACKUPS,
    COLLECTIONS,
    FREED_BYTES,
)

SUM = "sum"
Counts: TypeAlias = Mapping[tuple[str, tuple[str, ...]], float]
"""Counts by a metric's name and its labels' values. A histogram has one value more: a bucket's index, or `SUM`."""


class Meter(Protocol):
    """A counter of metrics, such as a `Tally`."""

    def add(self, metric: Metric, *labels: str, amount: float = 1.0) -> None:
        """Adds `amount` to the metric. `labels` are the values of the metric's labels, in their order."""


class Unmetered:
    """Counts nothing."""

    def add(self, metric: Metric, *labels: str, amount: float = 1.0) -> None:
        """Does nothing."""


UNMETERED = Unmetered()


class Tally:
    """Counts by metric and labels. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, tuple[str, ...]], float] = {}
        self.changed = threading.Event()
        """Set by every count; the thread that waits for it clears it."""

    def add(self, metric: Metric, *labels: str, amount: float = 1.0) -> None:
        """Adds to the metric, see `Meter`. For a histogram, `amount` is the observed value."""
        assert len(labels) == len(metric.labels), metric.name
        with self._lock:
            if metric.bounds:
                bucket = str(bisect_left(metric.bounds, amount))
                self._increase((metric.name, (*labels, bucket)), 1.0)
                self._increase((metric.name, (*labels, SUM)), amount)
            else:
                self._increase((metric.name, labels), amount)
        self.changed.set()

    def merge(self, counts: Counts) -> None:
        """Adds the counts of another tally."""
        with self._lock:
            for key, amount in counts.items():
                self._increase(key, amount)
        self.changed.set()

    def drain(self) -> Counts:
        """Returns what was counted since the last call, and starts again from zero."""
        with self._lock:
            drained, self._counts = self._counts, {}
            return drained

    def counts(self) -> Counts:
        """Returns all counts, and keeps them."""
        with self._lock:
            return dict(self._counts)

    def _increase(self, key: tuple[str, tuple[str, ...]], amount: float) -> None:
        self._counts[key] = self._counts.get(key, 0.0) + amount


@dataclass(frozen=True, slots=True)
class ClusterMetrics:
    """The service's figures for the whole cluster: counts since the service's actor began, and the cluster's load."""

    counts: Counts
    awake: int
    asleep: int | None
    """As of the last listing of the bucket; None before the first one."""
    nodes: int
    slots: int
    free_slots: int
    collected_at: float | None = None
    """The end of the last collection that succeeded, as a Unix time; None before the service's actor had one."""
