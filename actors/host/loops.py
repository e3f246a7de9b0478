"""The loops of an actor's process: each runs the steps of one plain object in a thread of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from actors.logs import log


def keep_on(step: Callable[[], float], *, name: str, failed: str, retry_s: float, nice: int = 0) -> None:
    """Runs `step` for ever in a new thread, and sleeps after each for as many seconds as it returns.

    Args:
        failed: the event that is logged if a step raises; the next step follows after `retry_s`.
        nice: the thread's niceness; 19 is the lowest priority.
    """

    def run() -> None:
        if nice:  # a lower niceness than the process has would need a capability
            lowest = max(nice, os.getpriority(os.PRIO_PROCESS, 0))
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), lowest)
        while True:
            pause_s = retry_s
            try:
                pause_s = step()
            except Exception as e:  # the cluster's head or the bucket is away for a moment, or the disk hangs
                log.warning(failed, error=type(e).__name__)
            time.sleep(pause_s)

    threading.Thread(target=run, name=name, daemon=True).start()
