"""The choice of a node for a new actor, in a cluster by script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from actors.errors import DRAINING, SandboxUnavailableError
from actors.service.placement import REUNION_S, Nodes, node_host_name
from tests.support.scripted_runtime import SILENT, Clock, Handle, ScriptedRuntime

ADDRESS = ("default", "box")


class Town:
    """A cluster whose nodes' identities are their names in capitals, and its `Nodes`."""

    def __init__(self, *node_ids: str) -> None:
        self.runtime = ScriptedRuntime()
        self.clock = Clock()
        self.hosts: dict[str, Handle] = {}
        self.made: list[str] = []
        for node_id in node_ids:
            self.add(node_id)
        self.nodes = Nodes(self.runtime, self._make, clock=self.clock, sleep=self.clock.sleep)

    def add(self, node_id: str, *, slots: float = 4.0) -> None:
        self.runtime.add(node_id, slots=slots)
        says: dict[str, list[Any]] = {
            "identity": [node_id.upper()],
            "has_archive": [False],
            "record_changed_at": [None],
        }
        self.hosts[node_id] = Handle(says)

    def _make(self, node_id: str) -> Handle:
        self.made.append(node_id)
        self.runtime.named[node_host_name(node_id)] = self.hosts[node_id]
        return self.hosts[node_id]

    def choose(self, identity: str | None = None, cached_backup_id: str | None = None) -> str:
        return self.nodes.choose(ADDRESS, identity, cached_backup_id)


def test_the_node_with_most_free_slots_is_chosen() -> None:
    town = Town("a", "b")
    town.runtime.free |= {"a": 1, "b": 3}
    assert town.choose() == "b"


def test_placements_count_before_ray_counts_them_and_only_for_a_second() -> None:
    town = Town("a", "b")
    town.runtime.free |= {"a": 1, "b": 2}
    assert sorted(town.choose() for _ in range(3)) == ["a", "b", "b"]
    with pytest.raises(SandboxUnavailableError) as caught:
        town.runtime.free |= {"a": 0, "b": 0}
        town.choose()
    assert caught.value.context["reason"] == "FULL"
    town.runtime.free["a"] = 1
    assert town.choose() == "a"


def test_the_node_with_the_files_is_chosen_even_if_others_are_emptier() -> None:
    town = Town("a", "b")
    town.runtime.free |= {"a": 1, "b": 3}
    assert town.choose("A") == "a"


def test_a_node_with_the_archive_is_chosen_before_an_emptier_one() -> None:
    town = Town("a", "b")
    town.runtime.free |= {"a": 1, "b": 3}
    town.hosts["a"].says["has_archive"] = [True]
    assert town.choose(cached_backup_id="x") == "a"
    town.runtime.free["a"] = 0
    assert town.choose(cached_backup_id="x") == "b"


def test_a_full_cluster_is_asked_again_until_a_slot_is_free() -> None:
    town = Town("a")
    town.runtime.free["a"] = 0
    town.clock.events.append(lambda: town.runtime.free.update(a=1))
    assert town.choose() == "a"


def test_a_cluster_that_stays_full_refuses_within_seconds() -> None:
    town = Town("a")
    town.runtime.free["a"] = 0
    began = town.clock.now
    with pytest.raises(SandboxUnavailableError, match="No node has room") as caught:
        town.choose()
    assert caught.value.context == {"outcome": "not_executed", "reason": "FULL"}
    assert 3 <= town.clock.now - began < 4
    with pytest.raises(SandboxUnavailableError, match="The node with its files has no room"):
        town.choose("A")


def test_a_draining_node_is_never_chosen_and_learns_of_the_caller() -> None:
    town = Town("a", "b")
    town.nodes.attend()
    town.runtime.draining["a"] = 0
    town.runtime.free |= {"a": 4, "b": 1}
    assert town.choose() == "b"
    with pytest.raises(SandboxUnavailableError) as caught:
        town.choose("A")
    assert caught.value.context["reason"] == DRAINING
    assert town.hosts["a"].calls[-1] == ("want", *ADDRESS)


def test_work_without_a_slot_goes_to_the_emptiest_node_and_books_nothing() -> None:
    town = Town("a", "b")
    town.runtime.free |= {"a": 1, "b": 2}
    assert [town.nodes.with_room() for _ in range(5)] == [town.hosts["b"]] * 5
    assert [town.choose() for _ in range(3)].count("b") == 2
    town.runtime.free |= {"a": 0, "b": 0}
    with pytest.raises(SandboxUnavailableError, match="No node has room"):
        town.nodes.with_room()


def test_each_new_node_gets_one_host_and_its_identity_is_asked_once() -> None:
    town = Town("a")
    town.nodes.attend()
    town.add("b")
    town.nodes.attend()
    town.nodes.attend()
    assert town.made == ["a", "b"]
    assert town.hosts["b"].calls == [("identity",)]


@pytest.mark.parametrize("failure", [SILENT, RuntimeError()])
def test_a_host_that_does_not_answer_leaves_its_node_unknown(failure: object) -> None:
    town = Town("a")
    town.hosts["a"].says["identity"] = [failure, "A"]
    town.nodes.attend()
    assert not town.nodes.is_lost("A", "earlier"), "a node of unknown identity may be this one"


def test_a_host_that_failed_is_made_again() -> None:
    town = Town("a")
    town.hosts["a"].says["identity"] = [RuntimeError(), "A"]
    town.nodes.attend()
    town.nodes.attend()
    assert town.made == ["a", "a"]


def _dies(town: Town) -> None:
    town.runtime.remove("a")


def _waits(town: Town) -> None:
    town.clock.now += REUNION_S + 1


@pytest.mark.parametrize(
    ("identity", "cluster_node", "event", "lost"),
    [
        ("A", "a", None, False),
        ("A", "a", _dies, True),
        ("C", "earlier", None, False),  # an earlier cluster's node may come back
        ("C", "earlier", _waits, True),
        ("B", "earlier", _waits, False),  # it has come back, under another name
    ],
)
def test_a_node_is_lost_once_the_cluster_saw_it_die_or_it_stays_away(
    identity: str, cluster_node: str, event: Callable[[Town], None] | None, lost: bool
) -> None:
    town = Town("a", "b")
    town.nodes.attend()
    if event is not None:
        event(town)
    assert town.nodes.is_lost(identity, cluster_node) is lost


def test_the_keeper_is_the_node_whose_record_changed_last() -> None:
    town = Town("a", "b", "c")
    town.nodes.attend()
    assert town.nodes.keeper(*ADDRESS) is None
    for node_id, at in {"a": 1.0, "b": 2.0}.items():
        town.hosts[node_id].says["record_changed_at"] = [at]
    assert town.nodes.keeper(*ADDRESS) == "B"


def test_a_record_is_unknown_while_a_node_does_not_answer() -> None:
    town = Town("a", "b")
    assert not town.nodes.has_record(*ADDRESS)
    town.hosts["a"].says["record_changed_at"] = [SILENT]
    with pytest.raises(SandboxUnavailableError):
        town.nodes.has_record(*ADDRESS)
    town.hosts["b"].says["record_changed_at"] = [1.0]
    assert town.nodes.has_record(*ADDRESS)


def test_only_hosts_of_draining_nodes_are_asked_to_leave() -> None:
    town = Town("a", "b")
    town.nodes.attend()
    town.runtime.draining["a"] = 0
    town.nodes.release_drained()
    assert ("leave",) in town.hosts["a"].calls
    assert ("leave",) not in town.hosts["b"].calls
