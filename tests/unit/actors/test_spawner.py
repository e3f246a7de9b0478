"""The spawner of sandboxes' actors, in a cluster by script."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from actors.errors import (
    ActorBeingMadeError,
    ActorLeavingError,
    HoldfastError,
    SandboxUnavailableError,
    TooManyCallsError,
)
from actors.rpc.names import sandbox_actor_name
from actors.rpc.runtime import ActorAwayError, ActorEndedError, NoAnswerInTimeError
from actors.service.placement import Nodes
from actors.service.spawner import Spawner
from actors.service.warm_workers import WarmWorkers
from actors.state.document import StateRead
from storage.metadata import SandboxState
from storage.sandbox_documents import StoredState
from tests.support.scripted_runtime import Clock, Handle, ScriptedRuntime

NAME = sandbox_actor_name("default", "box")
ADMITTED = ("a", 0, False)
LEAVES = ActorLeavingError()


class States:
    """The states in the bucket: that of one sandbox, or None while the bucket is down."""

    has_conditional_writes: bool | None = True

    def __init__(self) -> None:
        self.found: StateRead | None = StateRead(None)
        self.recorded: list[str] = []

    def find_state(self, tenant: str, sandbox_id: str) -> StateRead | None:
        return self.found

    def record_new(self, tenant: str, sandbox_id: str) -> StateRead | None:
        self.recorded.append(sandbox_id)
        return stored(None)


def stored(node: str | None) -> StateRead:
    state = SandboxState(id="box", tenant="default", created_at=datetime(2026, 1, 1, tzinfo=UTC), node=node)
    return StateRead(StoredState(state, "etag"))


class Town:
    """Two nodes, and the actors that the spawner makes. A new actor answers `admit` with `says` in turn."""

    def __init__(self, *says: Any) -> None:
        self.runtime, self.clock, self.states = ScriptedRuntime(), Clock(), States()
        self.says = says or (ADMITTED,)
        self.made: list[tuple[str, bool | None]] = []
        for node_id in ("a", "b"):
            self.runtime.add(node_id)
        nodes = Nodes(self.runtime, self._host, clock=self.clock, sleep=self.clock.sleep)
        warm = WarmWorkers(self.runtime, 0)
        self.spawner = Spawner(
            self.runtime, self.states, nodes, warm, self._make, clock=self.clock, sleep=self.clock.sleep
        )

    def _host(self, node_id: str) -> Handle:
        return Handle({"identity": [node_id.upper()], "record_changed_at": [1.0 if node_id == "b" else None]})

    def _make(
        self, name: str, node_id: str, tenant: str, sandbox_id: str, *, conditional_writes: bool | None
    ) -> Handle:
        self.made.append((node_id, conditional_writes))
        handle = self.runtime.named[name] = Handle({"admit": list(self.says)})
        return handle

    def add_actor(self, *says: Any) -> Handle:
        handle = self.runtime.named[NAME] = Handle({"admit": list(says)})
        return handle

    def spawn(self) -> tuple[Any, int]:
        return self.spawner.spawn("default", "box", "exec", None)


def test_an_actor_that_lives_admits_the_call_and_none_is_made() -> None:
    town = Town()
    actor = town.add_actor(("a", 7, False))
    assert town.spawn() == (actor, 7)
    assert (actor.calls, town.made) == ([("admit", "exec", None)], [])


def test_a_new_sandbox_is_recorded_and_its_actor_gets_the_state() -> None:
    town = Town()
    actor, restarts = town.spawn()
    assert (restarts, town.states.recorded) == (0, ["box"])
    assert actor.calls == [("admit", "exec", stored(None))]
    assert town.made[0][1] is True


def test_a_known_sandbox_is_made_at_its_files_and_not_recorded_again() -> None:
    town = Town()
    town.states.found = stored("B")
    town.runtime.free |= {"a": 4, "b": 1}
    town.spawn()
    assert ([node for node, _ in town.made], town.states.recorded) == (["b"], [])


def test_without_the_bucket_the_nodes_records_locate_the_files() -> None:
    town = Town()
    town.states.found = None
    town.spawner._nodes.attend()
    town.runtime.free |= {"a": 4, "b": 1}
    town.spawn()
    assert [node for node, _ in town.made] == ["b"]


@pytest.mark.parametrize("outcome", [LEAVES, ActorEndedError(), ActorAwayError("x")])
def test_the_successor_of_a_leaving_actor_is_made_once_the_name_is_free(outcome: Exception) -> None:
    town = Town()
    old = town.add_actor(outcome)
    town.clock.events += [lambda: None, lambda: town.runtime.named.pop(NAME)]
    actor, _ = town.spawn()
    assert actor is not old
    assert (len(old.calls), len(town.made)) == (2, 1)


@pytest.mark.parametrize(
    ("outcome", "message"),
    [(LEAVES, "x"), (ActorEndedError(), "did not start"), (ActorAwayError("x"), "did not start")],
)
def test_an_actor_that_goes_on_leaving_is_given_up_after_half_a_minute(outcome: Exception, message: str) -> None:
    town = Town()
    town.add_actor(outcome)
    began = town.clock.now
    with pytest.raises(SandboxUnavailableError, match=message):
        town.spawn()
    assert 30 <= town.clock.now - began < 31


@pytest.mark.parametrize("outcome", [TooManyCallsError("x"), SandboxUnavailableError("x")])
def test_a_refusal_of_the_actor_is_passed_on_at_once(outcome: HoldfastError) -> None:
    town = Town()
    actor = town.add_actor(outcome)
    with pytest.raises(type(outcome)):
        town.spawn()
    assert len(actor.calls) == 1


def _starts(town: Town) -> None:
    town.runtime.living.add(id(town.runtime.named[NAME]))


@pytest.mark.parametrize(
    ("is_ours", "has_started", "killed"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_only_a_new_actor_that_never_started_is_killed(is_ours: bool, has_started: bool, killed: bool) -> None:
    town = Town(NoAnswerInTimeError())
    if not is_ours:
        town.add_actor(NoAnswerInTimeError())
    if has_started:
        town.states.record_new = lambda tenant, sandbox_id: _starts(town)  # type: ignore[method-assign]
    with pytest.raises(SandboxUnavailableError, match="did not start in time"):
        town.spawn()
    assert town.runtime.killed == ([town.runtime.named[NAME]] if killed else [])


def test_a_second_call_is_turned_away_while_the_first_makes_the_actor() -> None:
    town = Town(LEAVES, ADMITTED)
    refused: list[ActorBeingMadeError] = []

    def call_again() -> None:
        with pytest.raises(ActorBeingMadeError) as caught:
            town.spawn()
        refused.append(caught.value)

    events: list[Callable[[], None]] = [call_again]
    town.clock.events += events
    town.spawn()
    assert len(refused) == 1
