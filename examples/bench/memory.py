"""Measures the memory and processor time of idle sandboxes, and the peak memory of each step."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.processes import Peak, cpu_s, named, pss_mb
from bench.tools import Tools
from bench.workloads import random_bytes

Figure = tuple[str, str]
_IDLE_S = 10.0


def figures(tools: Tools, *, boxes: int, size_mib: int) -> Iterator[Figure]:
    """Measures all figures."""
    holdfast = tools.holdfast
    names = [holdfast.new_name() for _ in range(boxes)]
    for name in names:
        holdfast.execute(name, "true")
    yield from _idle(boxes)

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


def _idle(boxes: int) -> Iterator[Figure]:
    actors = named(b"ray::SandboxHost")
    assert len(actors) >= boxes, f"{len(actors)} sandboxes are awake, not {boxes}"
    used_s = -sum(map(cpu_s, actors))
    time.sleep(_IDLE_S)
    used_s = (used_s + sum(map(cpu_s, actors))) / _IDLE_S
    yield f"memory of an awake idle sandbox, of {boxes}", f"{sum(map(pss_mb, actors)) / len(actors):.1f} MB (PSS)"
    yield "processor time of an awake idle sandbox", f"{1000 * used_s / len(actors):.1f} ms a second"


def _peak(what: str, peak: Peak) -> Figure:
    highest = sorted(peak.above_mb.items(), key=lambda row: -row[1])[:4]
    risen = ", ".join(f"{name} {mb:.0f} MB" for name, mb in highest if mb >= 0.5)
    return f"peak memory above the idle state: {what}", risen or "less than 1 MB"
