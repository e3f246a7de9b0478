"""The pause before a server is restarted."""

from __future__ import annotations

from itertools import pairwise

from storage.restarts import FIRST_PAUSE_S, LONGEST_PAUSE_S, STEADY_S, Backoff


def test_the_pause_doubles_with_each_early_end_up_to_a_bound() -> None:
    backoff = Backoff()
    pauses = [backoff.after(0.5) for _ in range(20)]
    assert pauses[0] == FIRST_PAUSE_S and pauses[-1] == LONGEST_PAUSE_S
    assert all(later == min(2 * earlier, LONGEST_PAUSE_S) for earlier, later in pairwise(pauses))


def test_a_steady_run_resets_the_pause() -> None:
    backoff = Backoff()
    for _ in range(20):
        backoff.after(0.5)
    assert [backoff.after(STEADY_S), backoff.after(0.5)] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S]
