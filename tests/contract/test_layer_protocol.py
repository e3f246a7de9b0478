"""The layers' protocol under many orders of requests, crashes and failures. `make soak` runs more of both tests."""

from __future__ import annotations

import itertools
import os
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.collect import collect
from storage.errors import StorageError
from storage.layers import NewLayers
from storage.store import list_all
from tests.support.layer_model import GRACE, TENANT, LayerProtocol, layer_of
from tests.support.layered import needed
from tests.support.stepped_store import Fate, Process

EXAMPLES = int(os.environ.get("HOLDFAST_TEST_LAYER_HISTORIES") or 40)
WRITER, COLLECTOR = 0, 1
pytestmark = pytest.mark.timeout(120 + 2 * EXAMPLES)

TestLayerProtocol = LayerProtocol.TestCase
TestLayerProtocol.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


def race(
    schedule: list[tuple[int, int]],
    *,
    writers: int = 1,
    collectors: int = 1,
    on_full: bool = False,
    late: bool = False,
) -> None:
    world = LayerProtocol()
    world.open(conditional=False, contended=False, late=late)
    world.race(schedule, world.contend(writers, collectors, on_full=on_full))
    world.teardown()


@pytest.mark.parametrize(("on_full", "late"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("first", [WRITER, COLLECTOR])
def test_no_order_with_two_switches_loses_a_layer(first: int, on_full: bool, late: bool) -> None:
    """Each goes on until a step, the other until one of its own, then the first to its end, for all steps."""
    for one, other in itertools.product(range(14), range(1, 14)):
        race([(first, one), (1 - first, other), (first, 1000)], on_full=on_full, late=late)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=12), st.booleans(), st.booleans())
@settings(max_examples=EXAMPLES * 5, deadline=None)
def test_three_writers_and_two_collectors_lose_no_layer(
    schedule: list[tuple[int, int]], on_full: bool, late: bool
) -> None:
    race(schedule, writers=3, collectors=2, on_full=on_full, late=late)


class Collected(LayerProtocol):
    """A bucket with work for a collector: layers that nobody needs, and references of a dead creation."""

    def fill(self) -> None:
        base, kept = self.committed()
        for content in (b"layer 1", b"layer 2"):
            self._write_incremental(self.store, base, content, timedelta(days=30))
        catalog = self.catalog(self.store)
        for record in self.committed():
            if record.id not in (base.id, kept.id):
                catalog.delete(TENANT, record.id)
        dead = NewLayers(self.store, TENANT, "00000000-0000-4000-8000-000000000000", kept, clock=self.seconds)
        dead.hold()
        dead.add(layer_of(b"layer 3"), lambda key: self.store.put(key, b"layer 3"))
        self.now += timedelta(days=2)

    def collect_disturbed(self, number: int, fate: Fate) -> Process | None:
        """Runs a collection, of which one request has another fate. Returns None if it makes fewer requests."""
        now = self.now
        process = Process(
            "collector", self.store, lambda store: collect(self.catalog(store), now=now, grace_s=GRACE.total_seconds())
        )
        for fates in (["done"] * number, [fate]):
            for each in fates:
                if process.is_over:
                    return None
                process.step(each)  # type: ignore[arg-type]
        while not process.is_over:
            process.step()
        assert process.failure is None or isinstance(process.failure, StorageError), process.failure
        return process

    def back_up(self, content: bytes) -> None:
        """Makes a backup on the kept one, with layers that the collector may be about to delete."""
        count = len(self.committed())
        self._write_incremental(self.store, self.committed()[1], content, timedelta(days=30))
        assert len(self.committed()) == count + 1

    def arrive_late(self, process: Process) -> None:
        for call in process.late:
            self._arrive(call)

    def check_keys(self) -> None:
        found = {row.key for row in list_all(self.store, "")}
        assert found == needed(self.committed())


@pytest.mark.parametrize("fate", ["refused", "unheard", "late", "killed before", "killed after"])
def test_a_collector_disturbed_at_any_request_loses_nothing_and_the_next_one_leaves_nothing(fate: Fate) -> None:
    for number in itertools.count():
        world = Collected()
        world.open(conditional=True, contended=False)
        world.fill()
        process = world.collect_disturbed(number, fate)
        if process is None:
            break
        for content in (b"layer 1", b"layer 3"):
            world.back_up(content)
            world.every_backup_has_all_it_needs()
        world.arrive_late(process)
        world.every_backup_has_all_it_needs()
        world.now += timedelta(days=2)
        world.collect_at_once()
        world.every_backup_has_all_it_needs()
        world.check_keys()
    assert number > 20
