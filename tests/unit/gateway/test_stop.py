"""The steps of a stop share its time limit; a slow step leaves time for the others."""

from __future__ import annotations

import threading
import time

import pytest

from gateway.embedded.stop import Stop

HANGS = threading.Event()


def hang() -> None:
    HANGS.wait()


def fail() -> None:
    raise OSError("no such thing")


def test_a_step_that_hangs_leaves_the_time_reserved_for_the_next() -> None:
    clock, began = Stop(2.0), time.monotonic()
    assert clock.step("hangs", hang, keep_s=1.9) is False
    assert clock.left_s() > 0.0
    assert clock.step("next", lambda: None, keep_s=0.0) is True
    assert clock.step("hangs again", hang, keep_s=0.0) is False
    assert time.monotonic() - began < 30.0


def test_a_step_is_begun_even_if_its_time_is_already_over() -> None:
    clock, done = Stop(0.0), threading.Event()
    clock.step("late", done.set, keep_s=1.0)
    assert done.wait(30.0)


def test_a_step_that_has_become_pointless_is_abandoned_at_once() -> None:
    clock = Stop(3600.0)
    assert clock.step("vain", hang, keep_s=0.0, is_in_vain=lambda: True) is False


def test_a_step_that_fails_is_logged_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert Stop().step("failing", fail, keep_s=0.0) is False
    said = capsys.readouterr()
    assert "failing" in said.out + said.err and "OSError" in said.out + said.err


def test_time_that_is_kept_back_is_subtracted_from_the_time_left() -> None:
    clock = Stop(10.0)
    assert clock.left_s() == pytest.approx(10.0, abs=1.0)
    assert clock.left_s(keep_s=11.0) == 0.0
