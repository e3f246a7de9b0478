"""The control groups of sandboxes, as the kernel shows them."""

from __future__ import annotations

import errno
from pathlib import Path

from actors.node import hierarchies
from actors.node.hierarchies import Hierarchies


def is_removed(group: Path) -> bool:
    """Removes a group without groups below it; False while processes that have just ended are still in it."""
    try:
        group.rmdir()
    except OSError as e:
        if e.errno != errno.EBUSY:
            raise
        return False
    return True


def pids_in(name: str) -> list[int]:
    """The processes in one group below the service's own now. Empty if there is no such group."""
    return hierarchies.pids_in(Hierarchies.find().v2 / name)
