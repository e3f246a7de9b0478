"""Tests of how the benchmark measures: warm-ups do not count, contestants take turns, and no failure is hidden."""

from __future__ import annotations

import subprocess
from itertools import count
from typing import NoReturn

from examples.bench.samples import Contestant, Row, interleaved


def measured(*, rounds: int = 2, **contestants: Contestant) -> Row:
    return interleaved(Row("files", "create", ("other",)), contestants, rounds=rounds, stored=lambda: 0)


def fail(*_: object) -> NoReturn:
    raise subprocess.CalledProcessError(1, "tool", stderr=b"no space\nleft")


def test_contestants_take_turns_and_their_first_runs_do_not_count() -> None:
    ran: list[str] = []
    row = measured(one=Contestant(lambda: ran.append("one")), other=Contestant(lambda: ran.append("other")))

    assert ran == ["one", "other", "other", "one", "one", "other"]
    assert {name: len(times) for name, times in row.times_s.items()} == {"other": 2, "one": 2}
    assert set(row.ratios("one")) == {"other"}
    assert row.ratios("other") == {}


def test_a_contestant_that_fails_has_its_error_and_no_times() -> None:
    for broken in (Contestant(fail), Contestant(int, check=fail), Contestant(int, prove=fail)):
        row = measured(one=broken, other=Contestant(int))

        assert list(row.times_s) == ["other"]
        assert "no space left" in row.failures["one"]


def test_a_contestant_that_fails_once_has_no_times_at_all() -> None:
    numbers = count()
    row = measured(rounds=3, one=Contestant(int, check=lambda _: next(numbers) != 2 or fail()))

    assert not row.times_s
    assert list(row.failures) == ["one"]
    assert next(numbers) == 3, "it is not run again"


def test_content_is_proven_once_and_the_kind_of_result_each_time() -> None:
    checked: list[int] = []
    proven: list[int] = []
    numbers = count()
    measured(one=Contestant(lambda: next(numbers), check=checked.append, prove=proven.append))

    assert (checked, proven) == ([0, 1, 2], [0])


def test_the_growth_of_the_store_counts_as_sent() -> None:
    stored = iter((10, 15, 15, 25, 25, 65))
    row = interleaved(Row("files", "create", ()), {"one": Contestant(int)}, rounds=2, stored=lambda: next(stored))

    assert row.sent_bytes["one"] == [10, 40]
    assert row.sent_mb("one") == 25e-6
