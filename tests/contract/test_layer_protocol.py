"""The layers' protocol under many orders of requests, crashes and failures. `make soak` runs more of both tests."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.layer_model import LayerProtocol

EXAMPLES = int(os.environ.get("HOLDFAST_TEST_LAYER_HISTORIES") or 40)
WRITER, COLLECTOR = 0, 1
pytestmark = pytest.mark.timeout(120 + 2 * EXAMPLES)

TestLayerProtocol = LayerProtocol.TestCase
TestLayerProtocol.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


def race(schedule: list[tuple[int, int]], *, writers: int = 1, collectors: int = 1) -> None:
    world = LayerProtocol()
    world.open(conditional=False, contended=False)
    world.race(schedule, world.contend(writers, collectors))
    world.teardown()


@pytest.mark.parametrize("first", [WRITER, COLLECTOR])
def test_no_order_with_two_switches_loses_a_layer(first: int) -> None:
    """Each goes on until a step, the other until one of its own, then the first to its end, for all steps."""
    for one, other in itertools.product(range(13), range(1, 14)):
        race([(first, one), (1 - first, other), (first, 1000)])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=12))
@settings(max_examples=EXAMPLES * 5, deadline=None)
def test_three_writers_and_two_collectors_lose_no_layer(schedule: list[tuple[int, int]]) -> None:
    race(schedule, writers=3, collectors=2)
