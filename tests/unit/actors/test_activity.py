"""Activity: which calls an actor serves while it is used, while it moves off a drained node, and at its end."""

from __future__ import annotations

import threading

import pytest

from actors.errors import ActorLeavingError, SandboxMovingError, TurnedAwayError
from actors.sandbox.activity import Activity


def refused(activity: Activity, *, goes_on: bool = False) -> type[TurnedAwayError] | None:
    """The class of the error that a call gets; None if it is served."""
    try:
        with activity.call(goes_on=goes_on):
            return None
    except TurnedAwayError as e:
        return type(e)


def test_a_closed_actor_serves_only_calls_that_continue_an_earlier_one() -> None:
    activity = Activity()
    activity.close()
    assert refused(activity) is SandboxMovingError
    assert refused(activity, goes_on=True) is None
    activity.end()
    assert refused(activity) is refused(activity, goes_on=True) is SandboxMovingError
    activity.stay()
    assert refused(activity) is None


def test_an_actor_that_leaves_after_idling_serves_nothing() -> None:
    activity = Activity()
    since = activity.idle_since(-1e9)
    assert since is not None and activity.leave(since)
    assert refused(activity) is refused(activity, goes_on=True) is ActorLeavingError


def test_waiting_for_idleness_ends_with_the_last_call() -> None:
    activity = Activity()
    waited: list[bool] = []
    with activity.call():
        assert activity.usage().is_serving
        assert not activity.wait_until_idle(0.0)
        waiting = threading.Thread(target=lambda: waited.append(activity.wait_until_idle(30.0)))
        waiting.start()
    waiting.join(30)
    assert waited == [True]
    assert not activity.usage().is_serving


def test_a_failed_call_is_no_longer_being_served() -> None:
    activity = Activity()
    with pytest.raises(ValueError), activity.call():
        raise ValueError
    assert activity.wait_until_idle(0.0)
