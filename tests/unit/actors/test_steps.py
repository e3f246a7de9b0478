"""The steps of the backup and restore protocols, as they are logged."""

from __future__ import annotations

import logging

import pytest

from actors.sandbox.steps import CreateStep, Step, step
from tests.support.killing import STEP_LOG, observe_steps


def test_a_step_is_logged_before_and_after_and_a_failed_one_only_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STEP_LOG, "handlers", [])
    seen: list[tuple[Step, str]] = []
    observe_steps(lambda name, moment: seen.append((name, moment)))
    with step(CreateStep.ARCHIVE):
        seen.append((CreateStep.ARCHIVE, "during"))
    with pytest.raises(ZeroDivisionError), step(CreateStep.COMMIT):
        raise ZeroDivisionError
    assert seen == [
        (CreateStep.ARCHIVE, "before"),
        (CreateStep.ARCHIVE, "during"),
        (CreateStep.ARCHIVE, "after"),
        (CreateStep.COMMIT, "before"),
    ]


def test_an_observer_may_end_the_step_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: Step, moment: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(STEP_LOG, "handlers", [])
    observe_steps(refuse)
    with pytest.raises(ZeroDivisionError), step(CreateStep.ARCHIVE):
        raise AssertionError("the step began")
    assert STEP_LOG.level == logging.DEBUG
