"""Runs contestants in turn, and keeps their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Contestant:
    """A piece of work to time: `run`. Before each run comes `before`, after it `after`; their time does not count."""

    run: Callable[[], object]
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None


@dataclass(slots=True)
class Row:
    """The times of one piece of work, in seconds, by contestant."""

    workload: str
    what: str
    reference: str
    times_s: dict[str, list[float]] = field(default_factory=dict)
    stored_bytes: dict[str, int] = field(default_factory=dict)
    reach: float | None = None
    """The ratio to the reference that we want to stay below."""

    def median_s(self, contestant: str) -> float:
        """The median of a contestant's times."""
        return statistics.median(self.times_s[contestant])

    def ratio(self, contestant: str) -> float | None:
        """A contestant's median over the reference's, of the same run."""
        if self.reference not in self.times_s or contestant == self.reference:
            return None
        return self.median_s(contestant) / self.median_s(self.reference)


def interleaved(row: Row, contestants: Mapping[str, Contestant], *, rounds: int, stored: Callable[[], int]) -> Row:
    """Runs every contestant once to warm up, then `rounds` times in turn, each round beginning with another one."""
    names = list(contestants)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            contestant = contestants[name]
            contestant.before()
            bytes_before = stored()
            began = time.perf_counter()
            contestant.run()
            took_s = time.perf_counter() - began
            if number:
                row.times_s.setdefault(name, []).append(took_s)
                row.stored_bytes[name] = stored() - bytes_before
            contestant.after()
    return row
