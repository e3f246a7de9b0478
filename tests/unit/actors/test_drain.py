"""The order in which a drained node hands its sandboxes over, with a clock stepped by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from actors.errors import SandboxInUseError, SandboxUnavailableError
from actors.service.drain import Drain, Occupant, Schedule, schedule

BEGAN, END = 1000.0, 1400.0
TIMES = Schedule(BEGAN, END)


def asleep(name: str, *, used_at: float = 0.0) -> Occupant:
    return Occupant("default", name, is_awake=False, in_use=False, used_at=used_at)


def awake(name: str, *, used_at: float = 0.0) -> Occupant:
    return replace(asleep(name, used_at=used_at), is_awake=True)


def in_use(name: str, *, used_at: float = 0.0) -> Occupant:
    return replace(awake(name, used_at=used_at), in_use=True)


def names(rows: list[Occupant]) -> list[str]:
    return [row.sandbox for row in rows]


class House:
    """A fake node: its sandboxes, and those handed over. A started hand-over runs when the test calls `finish`."""

    def __init__(self, *occupants: Occupant) -> None:
        self.here = {row.name: row for row in occupants}
        self.moved: list[tuple[str, bool]] = []
        self.refusing: set[str] = set()
        self.breaking: set[str] = set()
        self.refusal = SandboxUnavailableError("x", context={"reason": "STORAGE_UNAVAILABLE"})
        self.started: list[Callable[[], None]] = []
        self.now = BEGAN + 10  # past the time in which an actor placed before the drain may still arrive

    def occupants(self) -> list[Occupant]:
        return list(self.here.values())

    def hand_over(self, occupant: Occupant, *, force: bool) -> None:
        self.moved.append((occupant.sandbox, force))
        if occupant.sandbox in self.breaking:
            raise ValueError
        if occupant.sandbox in self.refusing:
            raise self.refusal
        del self.here[occupant.name]

    def drain(self, *, at_once: int = 2) -> Drain:
        return Drain(self, TIMES, start=self.started.append, clock=lambda: self.now, at_once=at_once)

    def finish(self) -> None:
        """Runs all hand-overs that were started."""
        started, self.started[:] = list(self.started), []
        for act in started:
            act()


def test_running_calls_get_a_quarter_of_the_time_and_a_minute_at_most() -> None:
    assert Schedule(BEGAN, BEGAN + 40).share_ends_at == BEGAN + 10
    assert Schedule(BEGAN, BEGAN + 3600).share_ends_at == BEGAN + 60
    assert Schedule(BEGAN, math.inf).share_ends_at == BEGAN + 60
    assert Schedule(BEGAN, BEGAN - 5).share_ends_at == BEGAN


def test_rays_deadline_is_in_milliseconds_and_zero_means_none() -> None:
    assert schedule(1_400_000, BEGAN) == TIMES
    assert schedule(0, BEGAN) == Schedule(BEGAN, math.inf)


def test_during_the_calls_share_idle_sandboxes_go_first_the_latest_used_before() -> None:
    rows = [asleep("old", used_at=1), in_use("busy"), awake("idle", used_at=2), asleep("new", used_at=3)]
    assert names(TIMES.due(rows, (), BEGAN)) == ["idle", "new", "old"]


def test_after_the_calls_share_sandboxes_in_use_go_first() -> None:
    rows = [asleep("new", used_at=9), in_use("used", used_at=1), awake("idle", used_at=2), in_use("latest", used_at=3)]
    assert names(TIMES.due(rows, (), TIMES.share_ends_at)) == ["latest", "used", "idle", "new"]


def test_a_sleeping_sandbox_that_gets_a_call_goes_before_idle_ones() -> None:
    rows = [awake("idle", used_at=2), asleep("called", used_at=1)]
    assert names(TIMES.due(rows, ["default/called"], BEGAN)) == ["called", "idle"]


def test_concurrent_hand_overs_are_limited() -> None:
    house = House(*(asleep(f"box-{number}", used_at=-number) for number in range(5)))
    drain = house.drain(at_once=2)
    for so_far in (2, 4, 5):
        drain.step()
        drain.step()
        house.finish()
        assert len(house.moved) == so_far
    assert house.moved == [(f"box-{number}", False) for number in range(5)]
    drain.step()
    assert drain.is_done


def test_a_place_is_kept_for_sandboxes_in_use_until_their_share_is_over() -> None:
    house = House(in_use("busy"), *(asleep(f"box-{number}", used_at=-number) for number in range(3)))
    drain = house.drain(at_once=2)
    drain.step()
    house.now = TIMES.share_ends_at
    drain.step()
    house.finish()
    assert house.moved == [("box-0", True), ("busy", True)]


def test_a_call_that_ends_within_its_share_is_not_forced() -> None:
    house = House(in_use("busy"))
    drain = house.drain()
    drain.step()
    assert house.started == [] and not drain.is_done
    house.here["default/busy"] = awake("busy")
    house.now = TIMES.share_ends_at - 1
    drain.step()
    house.finish()
    assert house.moved == [("busy", False)]


def test_a_failed_hand_over_is_retried_and_delays_no_other() -> None:
    house = House(awake("unlucky"), asleep("other"))
    house.refusing = {"unlucky"}
    drain = house.drain(at_once=1)
    drain.step()
    house.finish()
    drain.step()
    house.finish()
    assert house.moved == [("unlucky", False), ("other", False)]
    drain.step()
    assert house.started == [] and not drain.is_done
    house.refusing, house.now = set(), BEGAN + 60
    drain.step()
    house.finish()
    drain.step()
    assert drain.is_done and house.moved[-1] == ("unlucky", True)


def test_the_pauses_after_failures_grow_but_shrink_near_the_deadline() -> None:
    house = House(asleep("unlucky"))
    house.refusing = {"unlucky"}
    drain, house.now = house.drain(), BEGAN
    tried: list[float] = []
    while house.now < END:
        drain.step()
        if house.started:
            tried.append(house.now - BEGAN)
            house.finish()
        house.now += 1
    assert tried[:6] == [0, 2, 6, 14, 30, 46]
    assert all(later - earlier <= 16 for earlier, later in pairwise(tried))
    assert all(later - earlier <= 3 for earlier, later in pairwise(tried) if earlier > END - BEGAN - 25)
    assert END - BEGAN - tried[-1] <= 2


def test_a_sandbox_that_has_just_been_used_is_retried_soon() -> None:
    house = House(awake("used"))
    house.refusing, house.refusal = {"used"}, SandboxInUseError("x")
    drain, house.now = house.drain(), BEGAN
    tried = []
    while house.now < BEGAN + 8:
        drain.step()
        if house.started:
            tried.append(house.now - BEGAN)
            house.finish()
        house.now += 1
    assert tried == [0, 2, 4, 6]


def test_a_defect_in_one_hand_over_stops_no_other() -> None:
    house = House(awake("broken"), asleep("other"))
    house.breaking = {"broken"}
    drain = house.drain(at_once=1)
    for _ in range(2):
        drain.step()
        house.finish()
    assert [name for name, _ in house.moved] == ["broken", "other"]


def test_a_shorter_deadline_announced_later_counts() -> None:
    house = House(in_use("busy"))
    drain = house.drain()
    drain.announce(int((BEGAN + 8) * 1000))
    house.now = BEGAN + 2
    drain.step()
    house.finish()
    assert house.moved == [("busy", True)]


def test_a_drain_is_not_done_before_the_first_step() -> None:
    house = House()
    drain = house.drain()
    assert not drain.is_done
    drain.step()
    assert drain.is_done


def test_a_drain_is_not_done_while_an_actor_placed_before_it_may_arrive() -> None:
    house = House()
    house.now = BEGAN
    drain = house.drain()
    drain.step()
    assert not drain.is_done
    house.now += 5
    assert drain.is_done


def test_a_drain_is_not_done_while_a_hand_over_is_under_way() -> None:
    slow = asleep("slow")
    house = House(slow)
    drain = house.drain()
    drain.step()
    house.here.clear()
    drain.step()
    assert not drain.is_done
    house.here[slow.name] = slow
    house.finish()
    drain.step()
    assert drain.is_done


def test_late_sandboxes_are_logged_once_before_the_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    house = House(asleep("late"))
    house.refusing = {"late"}
    drain = house.drain()
    drain.step()
    assert "late" not in capsys.readouterr().err
    house.now = END - 1
    drain.step()
    drain.step()
    said = capsys.readouterr()
    assert (said.out + said.err).count("sandboxes_not_handed_over") == 1
    assert "default/late" in said.out + said.err
