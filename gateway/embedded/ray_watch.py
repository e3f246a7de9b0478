"""A watch over the Ray of this machine: when it is dead for good, the service ends in order, to be started anew."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Self

from actors.errors import ServiceUnavailableError
from actors.logs import log
from actors.rpc.cluster_health import dead_parts

_LOOK_S = 1.0
GRACE_S = 30.0
"""How long the service says 503 before it ends, so that whoever watches it sees why. Ray's own libraries end a process
without any order a minute after its control store has ended."""


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class RayWatch:
    """Looks at Ray's processes within a block, and ends this process when one of them has ended."""

    def __init__(
        self,
        *,
        look: Callable[[], Sequence[str]] = dead_parts,
        end: Callable[[], None] = _end_this_process,
        every_s: float = _LOOK_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._look, self._end = look, end
        self._every_s, self._grace_s = every_s, grace_s
        self._over = threading.Event()
        self._has_ended_us = False

    def __enter__(self) -> Self:
        """Begins to look. Nothing waits for the thread."""
        threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def check(self) -> None:
        """Raises ServiceUnavailableError if this process ends because Ray has ended."""
        if self._has_ended_us:
            raise ServiceUnavailableError(
                "Ray has ended on this machine, and no sandbox can be reached.",
                hint="Start the service again: files, backups and keys are kept. The system's log may name the cause.",
            )

    def _watch(self) -> None:
        while not (dead := self._look()):
            if self._over.wait(self._every_s):
                return
        log.error("ray_ended", parts=list(dead), service_ends_in_s=self._grace_s)
        if not self._over.wait(self._grace_s):
            self._has_ended_us = True
            self._end()
