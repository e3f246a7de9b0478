"""How many calls may wait for one sandbox."""

from __future__ import annotations

import pytest

from actors.admission import Admission
from actors.errors import TooManyCallsError


def test_so_many_calls_may_wait_in_a_lane_and_no_more() -> None:
    admission = Admission({"mailbox": 2, "exec": 1})
    admission.let_in("mailbox")
    admission.let_in("mailbox")
    with pytest.raises(TooManyCallsError) as raised:
        admission.let_in("mailbox")
    assert raised.value.context == {"limit": 2, "outcome": "not_executed"}
    admission.let_in("exec")
    admission.begin("mailbox")
    admission.let_in("mailbox")
    assert admission.waiting() == {"mailbox": 2, "exec": 1}


def test_a_call_that_was_sent_without_being_let_in_takes_nobodys_place() -> None:
    admission = Admission({"mailbox": 1})
    admission.begin("mailbox")
    assert admission.waiting() == {"mailbox": 0}


def test_a_caller_that_was_let_in_and_never_came_is_forgotten_whatever_others_do() -> None:
    now = 0.0
    admission = Admission({"mailbox": 2}, clock=lambda: now)
    assert admission.let_in("mailbox") == 0
    for _ in range(7):  # others come and go
        now += 600.0
        admission.let_in("mailbox")
        admission.begin("mailbox")
    assert admission.waiting() == {"mailbox": 0}
