"""The service's regular work, step by step: nodes, warm workers, idle sandboxes, and the count of the bucket."""

from __future__ import annotations

import pytest

from actors.rpc.names import sandbox_actor_name
from actors.rpc.runtime import WorkersNotStartedError
from actors.service.awake import Evictor, awake_of, close_all
from actors.service.housekeeping import HOUSEKEEPING_S, Housekeeping, SandboxCount
from actors.service.placement import Nodes, node_host_name
from actors.service.warm_workers import WarmWorkers
from tests.support.mount_leaks import wait_until
from tests.support.scripted_runtime import SILENT, Clock, Handle, ScriptedRuntime


def with_sandboxes(*names: str) -> tuple[ScriptedRuntime, dict[str, Handle]]:
    runtime = ScriptedRuntime()
    handles = {name: Handle() for name in names}
    runtime.named |= {sandbox_actor_name("default", name): handle for name, handle in handles.items()}
    return runtime, handles


class House:
    """The housekeeping of a service on node `head`."""

    def __init__(self) -> None:
        self.runtime = ScriptedRuntime()
        self.hosts: dict[str, Handle] = {}
        self.events: list[str] = []
        self.error: Exception | None = None
        nodes = Nodes(self.runtime, self._host)
        warm = WarmWorkers(self.runtime, 1)
        self.keeping = Housekeeping(
            self.runtime, nodes, warm, try_conditional_writes=self._try, move=lambda: self.events.append("moved")
        )

    def _host(self, node_id: str) -> Handle:
        host = self.runtime.named[node_host_name(node_id)] = Handle({"identity": [node_id.upper()]})
        self.hosts[node_id] = host
        return host

    def _try(self) -> None:
        self.events.append("tried")
        if self.error is not None:
            raise self.error


def test_a_round_attends_nodes_fills_their_workers_and_releases_drained_ones() -> None:
    house = House()
    house.runtime.add("head")
    assert house.keeping.step() == HOUSEKEEPING_S
    assert (house.hosts["head"].calls, house.runtime.started) == ([("identity",)], [("head", 1)])
    house.runtime.add("b")
    house.runtime.draining["head"] = 0
    house.keeping.step()
    assert house.hosts["head"].calls[1:] == [("leave",)]
    assert house.hosts["b"].calls == [("identity",)]


def test_nodes_are_attended_even_if_the_bucket_fails_in_an_unknown_way() -> None:
    house = House()
    house.runtime.add("head")
    house.error = ZeroDivisionError()
    house.keeping.step()
    assert (house.events, list(house.hosts)) == (["tried"], ["head"])


@pytest.mark.parametrize(
    ("nodes", "draining", "moves"),
    [
        (["head", "b"], [], False),
        (["head", "b"], ["b"], False),
        (["head", "b"], ["head"], True),
        (["head"], ["head"], False),
        (["head", "b"], ["head", "b"], False),
    ],
)
def test_the_service_moves_off_a_draining_node_if_another_can_take_it(
    nodes: list[str], draining: list[str], moves: bool
) -> None:
    house = House()
    for node_id in nodes:
        house.runtime.add(node_id)
    house.runtime.draining = dict.fromkeys(draining, 0)
    house.keeping.step()
    assert ("moved" in house.events) is moves


def test_each_sandbox_has_one_request_to_leave_in_its_mailbox() -> None:
    runtime, boxes = with_sandboxes("quick", "busy")
    boxes["busy"].says["leave"] = [SILENT]
    evictor = Evictor(runtime, 8)
    assert [evictor.step() for _ in range(3)] == [2, 2, 2]
    assert boxes["quick"].calls == [("leave", 8)] * 3
    assert boxes["busy"].calls == [("leave", 8)]


def test_a_request_that_failed_is_sent_again() -> None:
    runtime, boxes = with_sandboxes("box")
    boxes["box"].says["leave"] = [RuntimeError(), None]
    evictor = Evictor(runtime, 8)
    evictor.step()
    evictor.step()
    assert len(boxes["box"].calls) == 2


@pytest.mark.parametrize(("sleep_after_s", "pause_s"), [(0, 60), (0.001, 0.02), (100, 25), (900, 60)])
def test_rounds_of_requests_are_a_quarter_of_the_idle_time_apart(sleep_after_s: float, pause_s: float) -> None:
    runtime, boxes = with_sandboxes("box")
    assert Evictor(runtime, sleep_after_s).step() == pause_s
    assert boxes["box"].calls == [("leave", sleep_after_s or float("inf"))]


def test_closing_all_cancels_first_and_counts_what_failed_or_stayed_silent() -> None:
    runtime, boxes = with_sandboxes("good", "bad", "silent")
    boxes["bad"].says["close"] = [RuntimeError()]
    boxes["silent"].says["close"] = [SILENT]
    assert close_all(runtime) == 2
    assert {name: box.calls for name, box in boxes.items()} == {name: [("cancel",), ("close",)] for name in boxes}
    assert close_all(ScriptedRuntime()) == 0


def test_awake_sandboxes_are_those_of_the_tenant() -> None:
    runtime, _ = with_sandboxes("a", "b")
    assert awake_of(runtime, "default", ["a", "c"]) == {"a"}
    assert awake_of(runtime, "other", ["a"]) == set()


def test_a_long_count_is_followed_by_a_pause_a_hundred_times_as_long() -> None:
    clock, counts = Clock(), [5, 6]

    def count() -> int:
        clock.now += 2
        return counts.pop(0)

    counted = SandboxCount(count, clock=clock)
    said = [(counted.latest, 0.0)]
    for _ in range(2):
        pause_s = counted.step()
        said.append((counted.latest, pause_s))
    assert said == [(None, 0), (5, 200), (6, 200)]


def test_a_failed_count_keeps_the_last_one() -> None:
    answers: list[int | None] = [5]
    counted = SandboxCount(lambda: answers.pop())
    assert (counted.step(), counted.latest) == (30, 5)
    assert (counted.step(), counted.latest) == (30, 5)


def test_workers_are_started_a_few_at_a_time_and_again_when_their_time_is_over() -> None:
    runtime, clock = ScriptedRuntime(), Clock()
    runtime.add("a")
    warm = WarmWorkers(runtime, 5, clock=clock)
    for _ in range(5):
        warm.fill()
    assert runtime.started == [("a", 2), ("a", 2), ("a", 1)]
    clock.now += 600
    warm.fill()
    assert runtime.started[3:] == [("a", 2)]


def test_used_workers_are_replaced_once_no_call_waits_for_one() -> None:
    runtime = ScriptedRuntime()
    runtime.add("a")
    warm = WarmWorkers(runtime, 3)
    warm.fill()
    warm.fill()
    del runtime.started[:]
    with warm.awaited():
        with warm.awaited():
            for _ in range(5):
                warm.replace("a")
        assert runtime.started == []
    assert wait_until(lambda: runtime.started == [("a", 2)])
    warm.fill()
    assert runtime.started == [("a", 2), ("a", 1)], "no more than the node keeps"


def test_a_node_that_comes_back_gets_workers_anew() -> None:
    runtime = ScriptedRuntime()
    runtime.add("a")
    warm = WarmWorkers(runtime, 1)
    warm.fill()
    runtime.remove("a")
    warm.fill()
    runtime.known.clear()
    runtime.add("a")
    warm.fill()
    assert runtime.started == [("a", 1)] * 2


@pytest.mark.parametrize(("error", "tries_again"), [(WorkersNotStartedError(), True), (NotImplementedError(), False)])
def test_another_release_of_ray_is_asked_for_workers_once_only(error: Exception, tries_again: bool) -> None:
    runtime = ScriptedRuntime()
    runtime.add("a")
    warm = WarmWorkers(runtime, 4)
    runtime.start_error = error
    warm.fill()
    runtime.start_error = None
    warm.fill()
    assert bool(runtime.started) is tries_again
