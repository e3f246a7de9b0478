"""The mapping of a sandbox's own user, and the nodes that cannot have one."""

from __future__ import annotations

import pytest

from actors.config import DEFAULT_UID
from actors.node.drivers import Driver
from actors.node.idmapped import obstacle
from actors.node.user_namespace import OWNERS, exchanging
from tests.support import trees

_ALL = 2**32 - 1


@pytest.mark.parametrize(
    ("one", "other"), [(61_184, 61_190), (61_190, 61_184), (61_184, 61_185), (0, 1), (5, _ALL - 1)]
)
def test_two_users_are_exchanged_and_every_other_one_stays(one: int, other: int) -> None:
    rows = [tuple(map(int, row.split())) for row in exchanging(one, other).splitlines()]
    assert sum(count for _, _, count in rows) == _ALL

    def mapped(user: int) -> int:
        (found,) = (outside + user - inside for inside, outside, count in rows if inside <= user < inside + count)
        return found

    assert (mapped(one), mapped(other)) == (other, one)
    for user in {0, 1, 2, one - 1, one + 1, other - 1, other + 1, 65_534, _ALL - 1} - {one, other, -1, _ALL}:
        assert mapped(user) == user


@pytest.mark.parametrize("release", ["6.2.0", "6.18.44-fc", "10.0"])
def test_a_newer_kernel_is_no_obstacle_for_the_kernels_own_mounts(release: str) -> None:
    assert obstacle(Driver.KERNEL, release) is None


@pytest.mark.parametrize("release", ["6.1.0-18-amd64", "5.19", "4.4.0", "unheard of"])
def test_an_older_kernel_shows_copies_but_no_archives_as_another_users(release: str) -> None:
    assert obstacle(Driver.KERNEL, release) is not None
    assert obstacle(None, release) is None


@pytest.mark.parametrize("driver", [driver for driver in Driver if driver is not Driver.KERNEL])
def test_a_driver_with_a_daemon_is_named_as_the_obstacle(driver: Driver) -> None:
    assert driver in (obstacle(driver, "6.18") or "")


def test_the_trees_of_tests_know_the_same_users() -> None:
    assert (trees.DEFAULT_UID, trees.OWNERS) == (DEFAULT_UID, OWNERS)
