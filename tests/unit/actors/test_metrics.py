"""Tallies: counting, draining and merging."""

from __future__ import annotations

import pickle

from actors.metrics import CALL_SECONDS, CALLS, SUM, UPLOADED_BYTES, Tally


def test_counts_are_kept_per_label_values() -> None:
    tally = Tally()
    tally.add(CALLS, "exec", "ok")
    tally.add(CALLS, "exec", "ok")
    tally.add(CALLS, "exec", "EXEC_FAILED")
    tally.add(UPLOADED_BYTES, amount=7)
    assert tally.counts() == {
        (CALLS.name, ("exec", "ok")): 2,
        (CALLS.name, ("exec", "EXEC_FAILED")): 1,
        (UPLOADED_BYTES.name, ()): 7,
    }


def test_a_duration_counts_in_the_smallest_bucket_that_holds_it() -> None:
    tally = Tally()
    for seconds in (0.005, 0.006, 5000.0):
        tally.add(CALL_SECONDS, "exec", amount=seconds)
    last = str(len(CALL_SECONDS.bounds))
    assert {labels: amount for (_, labels), amount in tally.counts().items()} == {
        ("exec", "0"): 1,
        ("exec", "1"): 1,
        ("exec", last): 1,
        ("exec", SUM): 5000.011,
    }


def test_drained_counts_are_handed_over_once_and_merged_elsewhere() -> None:
    here, there = Tally(), Tally()
    here.add(CALLS, "exec", "ok")
    there.merge(pickle.loads(pickle.dumps(here.drain())))
    here.add(CALLS, "exec", "ok")
    there.merge(here.drain())
    assert (here.counts(), there.counts()) == ({}, {(CALLS.name, ("exec", "ok")): 2})
