"""A draining node, in a cluster by script: the watch for its drain, and its sandboxes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from actors.config import NodeConfig, SandboxConfig
from actors.errors import SandboxInUseError, SandboxUnavailableError
from actors.node_layout import NodeLayout
from actors.rpc.names import sandbox_actor_name
from actors.rpc.runtime import ActorAwayError, ActorEndedError
from actors.sandbox.activity import Usage
from actors.service.drain import Drain, Occupant, schedule
from actors.service.drain_watch import DRAIN_S, DrainWatch
from actors.service.draining_node import DrainingNode
from tests.support.scripted_runtime import SILENT, Handle, ScriptedRuntime


class House:
    """A node without sandboxes, and its watch. `log` says what the watch did."""

    def __init__(self) -> None:
        self.runtime = ScriptedRuntime()
        self.now = 1000.0
        self.log: list[str] = []
        self.watch = DrainWatch(self.runtime, "here", sweeper=lambda: self, begin=self._begin)

    def rest(self) -> None:
        self.log.append("rest")

    def resume(self) -> None:
        self.log.append("resume")

    def occupants(self) -> list[Occupant]:
        self.log.append("look")
        return []

    def hand_over(self, occupant: Occupant, *, force: bool) -> None: ...

    def _begin(self, deadline_ms: int) -> Drain:
        self.log.append(f"begin {deadline_ms}")
        return Drain(self, schedule(deadline_ms, self.now), start=lambda act: act(), clock=lambda: self.now)


def test_a_node_that_is_not_drained_is_only_asked_about() -> None:
    house = House()
    house.runtime.draining["other"] = 0
    assert house.watch.step() == DRAIN_S
    assert (house.log, house.watch.is_drained) == ([], False)
    house.watch.want("default", "box")


def test_the_sweeper_rests_before_the_drain_begins_once() -> None:
    house = House()
    house.runtime.draining["here"] = 2_000_000
    house.watch.step()
    house.watch.step()
    assert house.log == ["rest", "begin 2000000", "look", "look"]
    assert not house.watch.is_drained, "an actor that was placed here just before may still arrive"
    house.now += 10
    assert house.watch.is_drained


def test_a_cancelled_drain_lets_the_sweeper_go_on_and_the_next_one_begins_anew() -> None:
    house = House()
    for draining in ({"here": 0}, {}, {}, {"here": 0}):
        house.runtime.draining = draining
        house.watch.step()
    assert house.log == ["rest", "begin 0", "look", "resume", "rest", "begin 0", "look"]


class Premises:
    """The sandboxes `awake`, `asleep` and so on, whose folders are on this node."""

    def __init__(self, data_dir: Path, *names: str) -> None:
        config = SandboxConfig(node=NodeConfig(data_dir=data_dir), signing_key=SecretStr("key"))
        self.runtime = ScriptedRuntime()
        self.node = DrainingNode(self.runtime, config, None, node_id="here")
        for name in names:
            home = NodeLayout(config.node).box("default", name)
            home.mkdir(parents=True)
            (home / "sandbox.json").touch()

    def wake(self, name: str, *, usage: object = ("here", Usage(False, 5.0)), hand_over: object = None) -> Handle:
        handle = Handle({"usage": [usage], "hand_over": [hand_over]})
        self.runtime.named[sandbox_actor_name("default", name)] = handle
        return handle

    def occupants(self) -> dict[str, tuple[bool, bool]]:
        """Whether each occupant is awake, and in use."""
        return {row.sandbox: (row.is_awake, row.in_use) for row in self.node.occupants()}


def test_occupants_are_the_sandboxes_here_and_a_silent_actor_counts_as_in_use(tmp_path: Path) -> None:
    premises = Premises(tmp_path, "asleep", "idle", "serving", "silent", "died", "elsewhere")
    premises.wake("idle")
    premises.wake("serving", usage=("here", Usage(True, 0.0)))
    premises.wake("silent", usage=SILENT)
    premises.wake("died", usage=RuntimeError())
    premises.wake("elsewhere", usage=("there", Usage(True, 0.0)))
    assert premises.occupants() == {
        "asleep": (False, False),
        "idle": (True, False),
        "serving": (True, True),
        "silent": (True, True),
        "died": (True, False),
    }


def test_a_folder_without_a_record_is_no_sandbox(tmp_path: Path) -> None:
    premises = Premises(tmp_path, "box")
    (NodeLayout(NodeConfig(data_dir=tmp_path)).box("default", "box") / "sandbox.json").unlink()
    assert premises.occupants() == {}


def test_an_awake_sandbox_closes_its_door_before_it_hands_over(tmp_path: Path) -> None:
    premises = Premises(tmp_path, "box")
    actor = premises.wake("box", hand_over=ActorEndedError())
    (occupant,) = premises.node.occupants()
    premises.node.hand_over(occupant, force=True)
    assert actor.calls[1:] == [("close_door",), ("hand_over", True)]


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [(ActorAwayError("ActorUnavailableError"), "ActorUnavailableError"),
     (SandboxInUseError("x", context={"reason": "IN_USE"}), "IN_USE")],
)  # fmt: skip
def test_a_hand_over_without_an_answer_fails_with_its_reason(tmp_path: Path, outcome: Exception, reason: str) -> None:
    premises = Premises(tmp_path, "box")
    premises.wake("box", hand_over=outcome)
    (occupant,) = premises.node.occupants()
    with pytest.raises(SandboxUnavailableError) as caught:
        premises.node.hand_over(occupant, force=False)
    assert caught.value.context["reason"] == reason
