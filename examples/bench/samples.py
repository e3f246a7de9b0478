"""Runs contestants in turn, and keeps their times."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def _nothing(*_: Any) -> None:
    """Does nothing."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A piece of work to time: `run`. Nothing else counts.

    Each time, `before` comes first; then `run`; then `check` gets its result, and raises if it is not of the kind that
    is meant; then `after`. `prove` comes after the first `check` only, and looks whether all files are there.
    """

    run: Callable[[], Any]
    before: Callable[[], object] = _nothing
    check: Callable[[Any], object] = _nothing
    prove: Callable[[Any], object] = _nothing
    after: Callable[[], object] = _nothing


@dataclass(slots=True)
class Row:
    """The measurements of one piece of work, by contestant."""

    workload: str
    what: str
    references: tuple[str, ...]
    """The contestants to which the others are compared."""
    reach: float | None = None
    """The ratio of "holdfast" to the first reference that we want to stay below."""
    times_s: dict[str, list[float]] = field(default_factory=dict)
    sent_bytes: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median_s(self, contestant: str) -> float:
        """The median of a contestant's times."""
        return statistics.median(self.times_s[contestant])

    def ratios(self, contestant: str) -> dict[str, float]:
        """A contestant's median over those of the references, of the same run."""
        others = (name for name in self.references if name in self.times_s and name != contestant)
        return {name: self.median_s(contestant) / self.median_s(name) for name in others}

    def sent_mb(self, contestant: str) -> float:
        """The median of the bytes that a contestant sent to the store, in MB."""
        return statistics.median(self.sent_bytes.get(contestant, [0])) / 1e6


def interleaved(row: Row, contestants: Mapping[str, Contestant], *, rounds: int, stored: Callable[[], int]) -> Row:
    """Runs every contestant once to warm up, then `rounds` times in turn, each round beginning with another one.

    A contestant that fails has no times in the row, but its error, and is not run again.
    """
    names = list(contestants)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if name in row.failures:
                continue
            try:
                took_s, sent = _run(contestants[name], stored, is_first=number == 0)
            except (Exception, SystemExit) as e:  # the others' figures are not lost with one contestant's failure
                row.failures[name] = _said(e)
                row.times_s.pop(name, None)
                continue
            if number:
                row.times_s.setdefault(name, []).append(took_s)
                row.sent_bytes.setdefault(name, []).append(sent)
    return row


def _run(contestant: Contestant, stored: Callable[[], int], *, is_first: bool) -> tuple[float, int]:
    contestant.before()
    bytes_before = stored()
    began = time.perf_counter()
    result = contestant.run()
    took_s = time.perf_counter() - began
    sent = stored() - bytes_before
    contestant.check(result)
    if is_first:
        contestant.prove(result)
    contestant.after()
    return took_s, sent


def _said(error: BaseException) -> str:
    """An error in one line, with what a tool said."""
    said = error.stderr or b"" if isinstance(error, subprocess.CalledProcessError) else b""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return " ".join(f"{type(error).__name__}: {error} {text}".split())[:500]
