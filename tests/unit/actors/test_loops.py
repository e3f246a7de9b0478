"""The loops of an actor's process."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from actors.host.loops import keep_on
from actors.node.archive_cache import ArchiveCache
from actors.node.verified import Verified
from actors.service.scrub import ROUND_S, Scrub

LONG_S = 30.0


def test_a_loop_goes_on_after_a_step_that_failed() -> None:
    steps: list[str] = []
    went_on, forever = threading.Event(), threading.Event()

    def step() -> float:
        steps.append(threading.current_thread().name)
        if len(steps) == 2:
            raise ZeroDivisionError
        if len(steps) == 3:
            went_on.set()
            forever.wait()
        return 0.0

    keep_on(step, name="steps", failed="step_failed", retry_s=0.0)
    assert went_on.wait(LONG_S)
    assert steps == ["steps"] * 3


def test_only_the_loops_own_thread_is_nice() -> None:
    niceness: list[int] = []
    seen, forever = threading.Event(), threading.Event()

    def step() -> float:
        niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        seen.set()
        forever.wait()
        return 0.0

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    keep_on(step, name="steps", failed="step_failed", retry_s=0.0, nice=19)
    assert seen.wait(LONG_S)
    assert (niceness, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) == ([19], before)


def test_rounds_of_the_scrub_begin_a_day_apart(tmp_path: Path) -> None:
    verified = Verified(tmp_path / "verified")
    cache = ArchiveCache(tmp_path / "cache", max_bytes=0, verified=verified)
    assert Scrub(cache, tmp_path / "boxes", verified).step() == pytest.approx(ROUND_S, abs=60)
