"""A task that goes on beside what its caller does next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def in_a_thread(task: Callable[[], T]) -> Callable[[], T]:
    """Runs a task in a thread of its own, which ends with the process; at once, if no thread can be started.

    Its log lines keep the call's names.

    Returns:
        A function that waits for the task's end, and returns its result or raises its error.
    """
    outcome = Future[T]()

    def run() -> None:
        try:
            outcome.set_result(task())
        except BaseException as e:
            outcome.set_exception(e)

    try:
        threading.Thread(target=copy_context().run, args=(run,), name="beside", daemon=True).start()
    except RuntimeError:  # Python raises it where a thread's start fails with EAGAIN
        run()
    return outcome.result
