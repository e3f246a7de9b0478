"""The control groups of sandboxes, as the kernel shows them."""

from __future__ import annotations

from actors.node.hierarchies import PROCS, Hierarchies


def pids_in(name: str) -> list[int]:
    """The processes in one group below the service's own now. Empty if there is no such group."""
    file = Hierarchies.find().v2 / name / PROCS
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []
