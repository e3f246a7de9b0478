"""Delegation of controllers: the service's processes move into a leaf, so that their group may pass controllers on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from actors.node.delegation import Group, pass_on, strangers

ME = os.getpid()
HERE = {1: (0, False), 7: (1, True), 8: (7, False), 9: (8, False), 20: (1, False), 21: (20, False), 30: (21, False)}


@pytest.mark.parametrize(
    ("members", "others"),
    [
        ([30], []),  # ourselves
        ([7, 8, 9, 30], []),  # Ray, its children, and theirs
        ([20, 30], [20]),  # the shell that started us
        ([21, 30], [21]),
        ([1, 30], [1]),
        ([0, 30], [0]),  # a process in another pid namespace
        ([30, 99], []),  # a process that has just ended
    ],
)
def test_the_services_processes_are_told_apart_from_others(members: list[int], others: list[int]) -> None:
    assert strangers(members, HERE, own_pid=30) == others


def test_a_cycle_of_parents_ends_the_search() -> None:
    assert strangers([5], {5: (6, False), 6: (5, False)}, own_pid=30) == [5]


class Kernel(Group):
    """A control group with the kernel's rule: it passes no controller on while it holds a process."""

    def __init__(self, has: Iterable[str], members: Iterable[int], *, coming: Iterable[int] = ()) -> None:
        super().__init__(Path("/group"))
        self.has, self.passes, self.inside, self.moved = set(has), set[str](), list(members), list[int]()
        self.coming = list(coming)
        self.refused: int | None = None

    def controllers(self) -> set[str]:
        return self.has

    def passed_on(self) -> set[str]:
        return self.passes

    def pass_on(self, controllers: Iterable[str]) -> None:
        if self.inside:
            raise OSError(errno.EBUSY, "no internal processes")
        self.passes |= set(controllers)

    def members(self) -> list[int]:
        return list(self.inside)

    def move_into_leaf(self, pid: int) -> None:
        if self.refused is not None:
            raise OSError(self.refused, "refused")
        self.inside.remove(pid)
        self.moved.append(pid)
        if self.coming:  # forked meanwhile by the process that moved
            self.inside.append(self.coming.pop())


def test_an_empty_group_passes_on_the_controllers_that_it_has() -> None:
    group = Kernel({"memory", "cpu"}, [])
    assert pass_on(group, ["memory", "pids"]) is None
    assert group.passes == {"memory"}
    assert group.moved == []


def test_the_services_processes_move_into_the_leaf_including_those_forked_meanwhile() -> None:
    group = Kernel({"memory", "pids"}, [ME], coming=[ME] * 10)
    assert pass_on(group, ["memory", "pids"]) is None
    assert group.passes == {"memory", "pids"}
    assert group.moved == [ME] * 11


def test_no_process_moves_if_the_group_holds_a_foreign_one() -> None:
    group = Kernel({"memory"}, [ME, 0])
    obstacle = pass_on(group, ["memory"])
    assert obstacle is not None and "other processes" in obstacle
    assert (group.moved, group.passes) == ([], set())


def test_moving_stops_when_new_processes_keep_coming() -> None:
    group = Kernel({"memory"}, [ME], coming=[ME] * 1000)
    obstacle = pass_on(group, ["memory"])
    assert obstacle is not None and "keep coming" in obstacle


def test_the_kernels_refusal_is_in_the_error() -> None:
    group = Kernel({"memory"}, [ME])
    group.refused = errno.EACCES
    obstacle = pass_on(group, ["memory"])
    assert obstacle is not None and "Permission denied" in obstacle


def test_a_group_in_which_ray_keeps_its_processes_is_left_alone(tmp_path: Path) -> None:
    group = Kernel({"memory"}, [ME])
    group._folder = Path("/ray-node_1234/user/workers")
    obstacle = pass_on(group, ["memory"])
    assert obstacle is not None and "Ray itself" in obstacle
    assert group.moved == []
