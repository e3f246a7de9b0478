"""Measures the memory and processor time of idle sandboxes, and the peak memory of each step."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.processes import Idle, Peak, named
from bench.tools import Tools
from bench.workloads import random_bytes

Figure = tuple[str, str]
_SETTLED_S = 20.0
"""Time after which what a first call leaves to do is over, such as imports and looks at the tree."""


def figures(tools: Tools, empty_actor: Idle, *, boxes: int, size_mib: int) -> Iterator[Figure]:
    """Measures all figures. `empty_actor` is what an idle Ray actor takes that does nothing."""
    holdfast = tools.holdfast
    names = [holdfast.new_name() for _ in range(boxes)]
    for name in names:
        holdfast.execute(name, "true")
    yield from _idle(boxes, empty_actor)

    folder = tools.folder("memory")
    random_bytes(folder, size_mib=size_mib)
    box = holdfast.with_files(folder)
    with Peak() as peak:
        backup = holdfast.back_up(box)
    yield _peak(f"backup of {size_mib} random MiB", peak)
    holdfast.change(box)
    with Peak() as peak:
        incremental = holdfast.back_up(box)
    assert holdfast.info(incremental)["depth"] == 2
    yield _peak("incremental backup on it, 1 MB changed", peak)
    # Into awake sandboxes: the process of a new one would count as a whole.
    holdfast.empty_cache()
    with Peak() as peak:
        holdfast.restore(names[0], backup)
    yield _peak("restore of the first, archive not on the node", peak)
    with Peak() as peak:
        holdfast.restore(names[1], backup)
    yield _peak("restore, archive on the node", peak)
    with Peak() as peak:
        made = holdfast.fork(backup, 1)
    yield _peak("fork into a new sandbox", peak)
    for name in (*names, *made, box):
        holdfast.destroy(name)
    holdfast.delete_all_but()


def _idle(boxes: int, empty_actor: Idle) -> Iterator[Figure]:
    actors = named(b"ray::SandboxHost")
    assert len(actors) >= boxes, f"{len(actors)} sandboxes are awake, not {boxes}"
    time.sleep(_SETTLED_S)
    for what, idle in ((f"an awake idle sandbox, of {boxes}", Idle.measured(actors)), ("an empty actor", empty_actor)):
        yield f"memory of {what}", f"{idle.pss_mb:.1f} MB (PSS)"
        yield f"processor time of {what}", f"{idle.cpu_ms_per_s:.1f} ms a second"


def _peak(what: str, peak: Peak) -> Figure:
    highest = sorted(peak.above_mb.items(), key=lambda row: -row[1])[:4]
    risen = ", ".join(f"{name} {mb:.0f} MB" for name, mb in highest if mb >= 0.5)
    return f"peak memory above the idle state: {what}", risen or "less than 1 MB"
