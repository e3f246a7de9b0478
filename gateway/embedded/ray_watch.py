"""A watch over this machine's Ray: when Ray has died, the service stops in order, so that it can be restarted."""

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
"""Time in which the service answers 503 before it stops, so that its supervisor sees why. Ray's own libraries end a
process abruptly a minute after its control store has ended."""


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class RayWatch:
    """Watches Ray's processes within a block, and ends this process when one of them has ended."""

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
        """Starts to watch, in a daemon thread."""
        threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def check(self) -> None:
        """Raises ServiceUnavailableError if this process is ending because Ray has ended."""
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
