"""The creation lock: lets one call at a time make a sandbox's actor."""

from __future__ import annotations

import pytest

from actors.errors import (
    ActorBeingMadeError,
    ActorLeavingError,
    FilesElsewhereError,
    SandboxUnavailableError,
    TooManyCallsError,
)
from actors.service.creation_lock import CreationLock

FULL = FilesElsewhereError(
    "The node with the files is full.", hint="Try later.", context={"outcome": "not_executed", "reason": "F"}
)


def fail(lock: CreationLock, name: str, error: Exception, *, meanwhile: int) -> None:
    """A failed attempt to make an actor, during which this many other callers are turned away."""
    with pytest.raises(type(error)), lock.held(name):
        for _ in range(meanwhile):
            with pytest.raises(SandboxUnavailableError), lock.held(name):
                pytest.fail("two at once")
        raise error


def test_other_callers_are_turned_away_while_one_makes_the_actor() -> None:
    lock = CreationLock()
    with lock.held("a"):
        with lock.held("b"):
            pass
        with pytest.raises(ActorBeingMadeError) as raised, lock.held("a"):
            pytest.fail("two at once")
        assert raised.value.context == {"outcome": "not_executed"}
    with lock.held("a"):
        pass


def test_callers_turned_away_during_a_failed_spawn_get_its_error() -> None:
    lock = CreationLock()
    fail(lock, "a", FULL, meanwhile=2)
    with lock.held("b"):
        pass
    for _ in range(2):
        with pytest.raises(SandboxUnavailableError) as raised, lock.held("a"):
            pytest.fail("tried again")
        assert raised.value is not FULL and type(raised.value) is type(FULL)
        assert (raised.value.message, raised.value.hint, raised.value.context) == (
            FULL.message,
            FULL.hint,
            FULL.context,
        )
    with lock.held("a"):
        pass
    fail(lock, "a", FULL, meanwhile=0)
    with lock.held("a"):
        pass


def test_the_error_of_a_failed_spawn_is_soon_forgotten() -> None:
    now = 100.0
    lock = CreationLock(clock=lambda: now)
    fail(lock, "a", FULL, meanwhile=1)
    now += 1.1
    with lock.held("a"):
        pass
    for number in range(10):
        fail(lock, str(number), FULL, meanwhile=1)
        now += 0.6
    assert len(lock._failed) <= 2


@pytest.mark.parametrize(
    "error",
    [TooManyCallsError("x"), ActorLeavingError(), ValueError("x")],
)
def test_an_error_that_concerns_one_call_only_is_not_given_to_others(error: Exception) -> None:
    lock = CreationLock()
    fail(lock, "a", error, meanwhile=3)
    with lock.held("a"):
        pass
