"""The drain of a node: hands its sandboxes over before its deadline, in the right order. Knows no Ray.

Ray announces that it will take a node away, and waits. Meanwhile the node's host calls `Drain.step` every second. Calls
that are being served get a share of the time to end by themselves. Sandboxes that serve nothing are handed over
meanwhile, the most recently used first. When the share is over, sandboxes in use are handed over first, without waiting
for their calls. A hand-over that failed is tried again until the node ends: the bucket may come back.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.errors import HoldfastError, SandboxInUseError
from actors.logs import log

_SHARE = 0.25
_LONGEST_SHARE_S = 60.0
"""The share of the time until the deadline that calls being served get, and its upper bound."""
_RETRY_S, _LONGEST_RETRY_S = 2.0, 16.0
"""The pause after a sandbox's first failed hand-over, and the upper bound of later pauses."""
_WARNING_S = 3.0
"""Time before the deadline at which the sandboxes that are still here are logged."""
_ARRIVAL_S = 5.0
"""Time after the announcement in which an actor may still appear that was placed here just before."""
AT_ONCE = 4
"""Concurrent hand-overs. Source: each is one mksquashfs and one upload of four parts, which keep two cores busy."""


@dataclass(frozen=True, slots=True)
class Occupant:
    """One sandbox whose files are on the draining node.

    `in_use` is true if it serves a call now; `used_at` is the time of its last use, by the node's clock.
    """

    tenant: str
    sandbox: str
    is_awake: bool
    in_use: bool
    used_at: float

    @property
    def name(self) -> str:
        """The unique name: tenant and sandbox."""
        return f"{self.tenant}/{self.sandbox}"


class Premises(Protocol):
    """The sandboxes of a draining node: what `Drain` needs to find and move them."""

    def occupants(self) -> Sequence[Occupant]:
        """Returns the sandboxes that are still to be handed over."""

    def hand_over(self, occupant: Occupant, *, force: bool) -> None:
        """Moves a sandbox into the bucket. Repeatable.

        Raises:
            SandboxInUseError: it serves a call, and `force` is false.
            HoldfastError: it is still here.
        """


@dataclass(frozen=True, slots=True)
class Schedule:
    """The times of one drain, in seconds since 1970. `ends_at` is infinite without a deadline."""

    began_at: float
    ends_at: float

    @property
    def share_ends_at(self) -> float:
        """The time until which calls being served may go on."""
        return self.began_at + min(_LONGEST_SHARE_S, _SHARE * max(0.0, self.ends_at - self.began_at))

    def due(self, occupants: Iterable[Occupant], wanted: Iterable[str], now: float) -> list[Occupant]:
        """Returns the sandboxes that may be handed over now, in order.

        `wanted` are the names of sandboxes that are asleep here and were called meanwhile. They rank like sandboxes in
        use, but need not wait: no call is being served in them.
        """
        hurried = frozenset(wanted)
        share_is_over = now >= self.share_ends_at
        ready = [row for row in occupants if not row.in_use or share_is_over]
        return sorted(
            ready, key=lambda row: (not (row.in_use or row.name in hurried), not row.is_awake, -row.used_at, row.name)
        )


def schedule(deadline_ms: int, now: float) -> Schedule:
    """The times of a drain that begins now. Source: Ray gives milliseconds since 1970, and 0 for no deadline."""
    return Schedule(now, deadline_ms / 1000 if deadline_ms > 0 else math.inf)


class Drain:
    """One drain of this node, from its announcement to its end. The owner calls `step` about every second."""

    def __init__(
        self,
        premises: Premises,
        times: Schedule,
        *,
        start: Callable[[Callable[[], None]], None],
        clock: Callable[[], float] = time.time,
        at_once: int = AT_ONCE,
    ) -> None:
        """`start` runs a function in the background, and returns at once."""
        self._premises = premises
        self._times = times
        self._start = start
        self._clock = clock
        self._at_once = at_once
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._wanted: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self._left: tuple[str, ...] | None = None
        """The names of the sandboxes that were still here at the last step; None before the first."""
        self._has_named = False

    @property
    def is_done(self) -> bool:
        """True if all sandboxes were handed over, as of the last step, and no more can arrive."""
        with self._lock:
            return self._left == () and not self._under_way and self._clock() >= self._times.began_at + _ARRIVAL_S

    def announce(self, deadline_ms: int) -> None:
        """Sets the deadline that Ray announced last: a second announcement may shorten the first."""
        self._times = schedule(deadline_ms, self._times.began_at)

    def want(self, name: str) -> None:
        """Notes a call to a sandbox that is asleep here: it is handed over before those that no caller waits for."""
        with self._lock:
            self._wanted.add(name)

    def step(self) -> None:
        """Finds the sandboxes that are left, and begins the hand-overs that are due. Waits for no hand-over."""
        occupants, now = self._premises.occupants(), self._clock()
        for row in self._begun(occupants, now):
            self._start(lambda row=row: self._hand_over(row))  # type: ignore[misc]
        self._name_the_late(now)

    def _begun(self, occupants: Sequence[Occupant], now: float) -> list[Occupant]:
        with self._lock:
            self._left = tuple(row.name for row in occupants)
            ready = [
                row
                for row in self._times.due(occupants, self._wanted, now)
                if row.name not in self._under_way and self._not_before.get(row.name, 0.0) <= now
            ]
            waits_for_the_share = any(row.in_use for row in occupants) and now < self._times.share_ends_at
            free = self._at_once - len(self._under_way) - (1 if waits_for_the_share and self._at_once > 1 else 0)
            chosen = ready[: max(0, free)]
            self._under_way |= {row.name for row in chosen}
            return chosen

    def _hand_over(self, row: Occupant) -> None:
        failure: Exception | None = None
        try:
            self._premises.hand_over(row, force=self._clock() >= self._times.share_ends_at)
            log.info("sandbox_handed_over", tenant=row.tenant, sandbox=row.sandbox, was_awake=row.is_awake)
        except Exception as e:  # the failure of one sandbox must not keep the others here
            failure = e
        self._ended(row, failure)

    def _ended(self, row: Occupant, failure: Exception | None) -> None:
        with self._lock:
            self._under_way.discard(row.name)
            if failure is None:
                self._wanted.discard(row.name)
                return
            pause_s = self._pause_s(self._failures[row.name])
            self._failures[row.name] += not isinstance(failure, SandboxInUseError)
            self._not_before[row.name] = self._clock() + pause_s
        reason = _reason(failure)
        log.warning("hand_over_failed", tenant=row.tenant, sandbox=row.sandbox, reason=reason, again_in_s=pause_s)

    def _pause_s(self, failures: int) -> float:
        """The pause after a failure: twice the one before, at most a tenth of the time left, at least `_RETRY_S`."""
        left_s = self._times.ends_at - self._clock()
        longest_s = max(_RETRY_S, min(_LONGEST_RETRY_S, left_s / 10))
        return float(min(_RETRY_S * 2**failures, longest_s))

    def _name_the_late(self, now: float) -> None:
        """Logs, once, the sandboxes that are still here as the node ends. They come back from their last backups."""
        with self._lock:
            late = self._left if now >= self._times.ends_at - _WARNING_S and not self._has_named else None
            self._has_named = self._has_named or bool(late)
        if late:
            log.error("sandboxes_not_handed_over", sandboxes=list(late))


def _reason(failure: Exception) -> str:
    """The word for a failure in the log."""
    return (
        str(failure.context.get("reason", failure.code))
        if isinstance(failure, HoldfastError)
        else type(failure).__name__
    )
