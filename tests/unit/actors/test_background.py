"""Background work: done when it is asked for, one call at a time, by a thread that ends with it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from actors.background import Background

LIMIT_S = 30.0


class Work:
    """Work that a test can hold; it is asked for again after each of `pauses`."""

    def __init__(self, *pauses: float | None) -> None:
        self._pauses: Iterator[float | None] = iter(pauses)
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.threads: list[threading.Thread] = []
        self.under_way = 0

    def __call__(self) -> float | None:
        self.under_way += 1
        assert self.under_way == 1
        self.threads.append(threading.current_thread())
        self.begun.release()
        assert self.go_on.acquire(timeout=LIMIT_S)
        self.under_way -= 1
        return next(self._pauses, None)

    def once(self) -> None:
        """Lets one call begin and end."""
        assert self.begun.acquire(timeout=LIMIT_S)
        self.go_on.release()

    def end(self) -> None:
        """Waits for the end of the thread."""
        self.threads[-1].join(LIMIT_S)
        assert not self.threads[-1].is_alive()


def test_work_is_done_once_and_its_thread_ends() -> None:
    work = Work()
    background = Background("test", work)
    for number in (1, 2):
        background.ask()
        work.once()
        work.end()
        assert len(work.threads) == number
    assert work.threads[0] is not work.threads[1]


def test_work_that_is_asked_for_while_it_is_done_is_done_again() -> None:
    work = Work()
    background = Background("test", work)
    background.ask()
    assert work.begun.acquire(timeout=LIMIT_S)
    background.ask()
    background.ask()
    work.go_on.release()
    work.once()
    work.end()
    assert len(work.threads) == 2 and len(set(work.threads)) == 1


def test_work_that_asks_for_itself_is_done_again() -> None:
    work = Work(0.0, 0.01, None)
    Background("test", work).ask()
    for _ in range(3):
        work.once()
    work.end()
    assert len(work.threads) == 3


def test_a_pause_ends_early_when_the_work_is_asked_for() -> None:
    work = Work(1e6, None)
    background = Background("test", work)
    background.ask(after_s=1e6)
    for _ in range(2):
        background.ask()
        work.once()
    work.threads[0].join(0.01)
    assert len(work.threads) == 2


def test_work_that_has_failed_is_done_again_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: queue.Queue[threading.ExceptHookArgs] = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", ended.put)

    def fail() -> float | None:
        raise OSError("of a test")

    background = Background("test", fail)
    for _ in range(2):
        background.ask()
        assert ended.get(timeout=LIMIT_S).exc_type is OSError
