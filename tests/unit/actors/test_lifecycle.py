"""The life of a sandbox in its actor: which state follows from which."""

from __future__ import annotations

from itertools import pairwise

import pytest

from actors.errors import SupersededError
from actors.state.lifecycle import ForbiddenMoveError, Life, LifeCycle

WAYS: dict[Life, tuple[Life, ...]] = {
    Life.UNKNOWN: (),
    Life.WAKING: (Life.WAKING,),
    Life.RECOVERING: (Life.RECOVERING,),
    Life.AWAKE: (Life.WAKING, Life.AWAKE),
    Life.LEAVING: (Life.WAKING, Life.AWAKE, Life.LEAVING),
    Life.ASLEEP_HERE: (Life.ASLEEP_HERE,),
    Life.ASLEEP_IN_BUCKET: (Life.WAKING, Life.AWAKE, Life.LEAVING, Life.ASLEEP_IN_BUCKET),
    Life.DESTROYED: (Life.DESTROYED,),
    Life.SUPERSEDED: (Life.SUPERSEDED,),
}
"""A way from the beginning to each state."""

DRAWN = """
UNKNOWN -> WAKING RECOVERING ASLEEP_HERE DESTROYED
WAKING -> UNKNOWN RECOVERING AWAKE DESTROYED
RECOVERING -> UNKNOWN WAKING AWAKE DESTROYED
AWAKE -> WAKING RECOVERING LEAVING ASLEEP_HERE DESTROYED
LEAVING -> ASLEEP_HERE ASLEEP_IN_BUCKET
ASLEEP_HERE -> WAKING RECOVERING DESTROYED
ASLEEP_IN_BUCKET -> WAKING RECOVERING DESTROYED
DESTROYED -> WAKING RECOVERING
SUPERSEDED ->
"""
ALLOWED = {
    (Life[line.split()[0]], Life[to]) for line in DRAWN.strip().splitlines() for to in line.split(" ->")[1].split()
}


def life_in(state: Life) -> LifeCycle:
    life = LifeCycle()
    for step in WAYS[state]:
        life.move(step)
    assert life.state is state
    return life


@pytest.mark.parametrize("to", Life)
@pytest.mark.parametrize("state", Life)
def test_a_sandbox_moves_as_drawn_and_in_no_other_way(state: Life, to: Life) -> None:
    life = life_in(state)
    if (state, to) in ALLOWED or to in (state, Life.SUPERSEDED):
        life.move(to)
        assert life.state is to
        return
    with pytest.raises(SupersededError if state is Life.SUPERSEDED else ForbiddenMoveError):
        life.move(to)
    assert life.state is state


@pytest.mark.parametrize("state", Life)
def test_only_a_sandbox_that_is_here_and_not_leaving_writes_its_state(state: Life) -> None:
    assert life_in(state).may_write == (state in (Life.WAKING, Life.RECOVERING, Life.AWAKE))


@pytest.mark.parametrize("state", Life)
def test_a_sandbox_is_unwoken_until_it_is_awake_closed_or_destroyed(state: Life) -> None:
    assert life_in(state).is_unwoken == (state in (Life.UNKNOWN, Life.WAKING, Life.RECOVERING))


@pytest.mark.parametrize("state", Life)
def test_the_end_of_a_time_awake_leaves_the_sandbox_asleep_or_not_woken(state: Life) -> None:
    life = life_in(state)
    life.end()
    asleep = {Life.AWAKE: Life.ASLEEP_HERE, Life.LEAVING: Life.ASLEEP_HERE}
    failed = {Life.WAKING: Life.UNKNOWN, Life.RECOVERING: Life.UNKNOWN}
    assert life.state is {**asleep, **failed}.get(state, state)


@pytest.mark.parametrize("state", Life)
def test_a_closed_sandbox_is_asleep_even_if_it_was_never_woken(state: Life) -> None:
    life = life_in(state)
    life.close()
    gone = (Life.ASLEEP_IN_BUCKET, Life.DESTROYED, Life.SUPERSEDED)
    assert life.state is (state if state in gone else Life.ASLEEP_HERE)


def test_every_state_can_be_reached_by_allowed_moves() -> None:
    for way in WAYS.values():
        for state, to in pairwise((Life.UNKNOWN, *way)):
            assert (state, to) in ALLOWED or to is Life.SUPERSEDED
