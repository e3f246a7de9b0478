"""Admission: the number of calls that may wait for one sandbox."""

from __future__ import annotations

import pytest

from actors.errors import TooManyCallsError
from actors.sandbox.admission import Admission


def test_the_number_of_waiting_calls_in_a_lane_is_limited() -> None:
    admission = Admission({"mailbox": 1, "exec": 1}, limit=2)
    admission.admit("mailbox")
    admission.admit("mailbox")
    with pytest.raises(TooManyCallsError) as raised:
        admission.admit("mailbox")
    assert raised.value.context == {"limit": 2, "outcome": "not_executed"}
    admission.admit("exec")
    with admission.serving("mailbox"):
        admission.admit("mailbox")
    assert admission.waiting() == {"mailbox": 2, "exec": 1}


def test_serving_a_call_that_was_not_admitted_leaves_the_count_at_zero() -> None:
    admission = Admission({"mailbox": 1})
    with admission.serving("mailbox"):
        pass
    assert admission.waiting() == {"mailbox": 0}


def test_an_admitted_caller_that_never_came_expires_despite_other_calls() -> None:
    now = 0.0
    admission = Admission({"mailbox": 1}, limit=2, clock=lambda: now)
    assert admission.admit("mailbox") == 0
    for _ in range(7):  # other calls come and go
        now += 10.0
        admission.admit("mailbox")
        with admission.serving("mailbox"):
            pass
    assert admission.waiting() == {"mailbox": 0}


def test_a_call_that_waits_for_a_thread_does_not_expire() -> None:
    now = 0.0
    admission = Admission({"exec": 2}, clock=lambda: now)
    for _ in range(3):
        admission.admit("exec")
    with admission.serving("exec"), admission.serving("exec"):
        now += 3000.0
        assert admission.admit("exec") == 1
        now += 1000.0
        assert admission.admit("exec") == 1
    assert admission.waiting() == {"exec": 2}


def test_calls_that_wait_for_a_thread_expire_only_after_it_idles() -> None:
    now = 0.0
    admission = Admission({"mailbox": 1}, clock=lambda: now)
    for _ in range(4):
        admission.admit("mailbox")
    for _ in range(2):
        with admission.serving("mailbox"):
            now += 100.0
        now += 0.5
        assert admission.admit("mailbox") >= 3
    now += 1.0
    assert admission.admit("mailbox") == 1  # the ticket from a second ago may still be used


def test_a_call_that_needs_no_admission_uses_a_thread_but_no_place() -> None:
    now = 0.0
    admission = Admission({"files": 1}, clock=lambda: now)
    admission.admit("files")
    with admission.serving("files", was_admitted=False):
        assert admission.waiting() == {"files": 1}
        now += 1000.0
        assert admission.admit("files") == 1


def test_a_withdrawn_admission_frees_its_place_at_once() -> None:
    admission = Admission({"exec": 1}, limit=1)
    admission.admit("exec")
    admission.withdraw("exec")
    assert admission.admit("exec") == 0
