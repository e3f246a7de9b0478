"""The drain of a node: it gives its sandboxes away before its deadline, in the right order. Knows no Ray.

Ray announces that it will take a node away, and waits. So long the node's host asks `Drain.step` every second. Calls
that are being served get a share of the time to end by themselves; sandboxes that serve nothing are handed over
meanwhile, the most recently used first. When the share is over those in use come first, and are not waited for any
more. What has failed is tried again until the node's end: the bucket may come back.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.errors import IN_USE, HoldfastError
from actors.logs import log

_SHARE = 0.25
_LONGEST_SHARE_S = 60.0
"""How much of the time until the deadline calls get that are being served, and how much at most."""
_RETRY_S, _LONGEST_RETRY_S = 2.0, 16.0
"""How long a sandbox whose hand-over has failed waits for the second try, and for each further one at most."""
_WARNING_S = 3.0
"""How long before the deadline those are named who are still here."""
_ARRIVAL_S = 5.0
"""How long after the announcement an actor may still show up that was placed here just before."""
AT_ONCE = 4
"""Hand-overs at once. Source: each is one mksquashfs and one upload of four parts, which keep two cores busy."""


@dataclass(frozen=True, slots=True)
class Occupant:
    """One sandbox whose files are on the draining node.

    `in_use` says whether a call is being served just now; `used_at` is when it was used last, by the node's clock.
    """

    tenant: str
    sandbox: str
    is_awake: bool
    in_use: bool
    used_at: float

    @property
    def name(self) -> str:
        """The name that tells it from all others."""
        return f"{self.tenant}/{self.sandbox}"


class Premises(Protocol):
    """The sandboxes of a draining node, as `Drain` finds and moves them."""

    def occupants(self) -> Sequence[Occupant]:
        """Those that are still to be handed over."""

    def hand_over(self, occupant: Occupant, *, force: bool) -> None:
        """Moves one into the bucket. Repeatable. Without `force` not while a call is being served in it.

        Raises HoldfastError: it is here still.
        """


@dataclass(frozen=True, slots=True)
class Schedule:
    """The times of one drain, by the clock that counts seconds since 1970. `ends_at` is infinite without a deadline."""

    began_at: float
    ends_at: float

    @property
    def share_ends_at(self) -> float:
        """Until when calls that are being served are left alone."""
        return self.began_at + min(_LONGEST_SHARE_S, _SHARE * max(0.0, self.ends_at - self.began_at))

    def due(self, occupants: Iterable[Occupant], wanted: Iterable[str], now: float) -> list[Occupant]:
        """Those that may be handed over now, in the order in which they should be.

        `wanted` are the names of sandboxes that sleep here and that somebody has called meanwhile: they count as in
        use, but have no call that could end by itself.
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
    """One drain of this node, from its announcement to its end. Stepped by its owner, every second or so."""

    def __init__(
        self,
        premises: Premises,
        times: Schedule,
        *,
        start: Callable[[Callable[[], None]], None],
        clock: Callable[[], float] = time.time,
        at_once: int = AT_ONCE,
    ) -> None:
        """`start` begins to run what it is given, and returns at once."""
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
        """The names of those still to be handed over at the last look; None before the first."""
        self._has_named = False

    @property
    def is_done(self) -> bool:
        """Whether everybody was handed over, as of the last step, and nobody can come any more."""
        with self._lock:
            return self._left == () and not self._under_way and self._clock() >= self._times.began_at + _ARRIVAL_S

    def announce(self, deadline_ms: int) -> None:
        """Takes over a deadline that Ray has announced since: a second announcement may shorten the first."""
        self._times = schedule(deadline_ms, self._times.began_at)

    def want(self, name: str) -> None:
        """Somebody has called a sandbox that sleeps here: it is handed over before those that nobody waits for."""
        with self._lock:
            self._wanted.add(name)

    def step(self) -> None:
        """Looks who is left, and begins the hand-overs that are due. Returns at once."""
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
        failure: str | None = None
        try:
            self._premises.hand_over(row, force=self._clock() >= self._times.share_ends_at)
            log.info("sandbox_handed_over", tenant=row.tenant, sandbox=row.sandbox, was_awake=row.is_awake)
        except HoldfastError as e:
            failure = str(e.context.get("reason", e.code))
        except Exception as e:  # nothing that this sandbox meets may keep the others here
            failure = type(e).__name__
        self._ended(row, failure)

    def _ended(self, row: Occupant, failure: str | None) -> None:
        with self._lock:
            self._under_way.discard(row.name)
            if failure is None:
                self._wanted.discard(row.name)
                return
            pause_s = self._pause_s(self._failures[row.name])
            self._failures[row.name] += failure != IN_USE
            self._not_before[row.name] = self._clock() + pause_s
        log.warning("hand_over_failed", tenant=row.tenant, sandbox=row.sandbox, reason=failure, again_in_s=pause_s)

    def _pause_s(self, failures: int) -> float:
        """The pause after so many failures before this one: never more than a tenth of the time left."""
        left_s = self._times.ends_at - self._clock()
        longest_s = max(_RETRY_S, min(_LONGEST_RETRY_S, left_s / 10))
        return float(min(_RETRY_S * 2**failures, longest_s))

    def _name_the_late(self, now: float) -> None:
        """Names, once, those whom the node's end is going to meet here: they come back from their last backups."""
        with self._lock:
            late = self._left if now >= self._times.ends_at - _WARNING_S and not self._has_named else None
            self._has_named = self._has_named or bool(late)
        if late:
            log.error("sandboxes_not_handed_over", sandboxes=list(late))
