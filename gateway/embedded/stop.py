"""The time limit of a stop of the service, divided among its steps.

Whatever is dead or hangs (Ray's processes, a sandbox, the store, a FUSE daemon), the later steps run, and the process
ends in time. A step that exceeds its time goes on in a thread of its own; the process does not wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from actors.logs import log

STOP_S = 22.0
"""Share of the 30 s that a stop may take. The gateway has the rest: see `gateway.server.GRACEFUL_S`."""
_LOOK_S = 0.1


class Stop:
    """The clock of one stop; its first step starts it."""

    def __init__(self, total_s: float = STOP_S) -> None:
        self._total_s = total_s
        self._deadline: float | None = None

    def left_s(self, *, keep_s: float = 0.0) -> float:
        """Seconds that a step may take, if `keep_s` are to be left for the later steps."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._total_s
        return max(0.0, self._deadline - time.monotonic() - keep_s)

    def step(
        self, name: str, act: Callable[[], None], *, keep_s: float, is_in_vain: Callable[[], bool] = lambda: False
    ) -> bool:
        """Runs a step, and abandons it when its time is over, or when `is_in_vain` returns True. Never raises.

        Returns:
            True if it has ended without an error. Otherwise the log has its name and the cause.
        """
        failures: list[Exception] = []
        ended = threading.Event()

        def run() -> None:
            try:
                act()
            except Exception as e:
                failures.append(e)
            finally:
                ended.set()

        threading.Thread(target=run, name=f"stop-{name}", daemon=True).start()
        deadline = time.monotonic() + self.left_s(keep_s=keep_s)
        while not ended.wait(min(_LOOK_S, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline or is_in_vain():
                log.error("step_of_stop_given_up", step=name)
                return False
        if failures:
            log.error("step_of_stop_failed", step=name, error=type(failures[0]).__name__)
        return not failures
