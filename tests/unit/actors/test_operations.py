"""Operations: progress, cancellation and the record of ended ones."""

from __future__ import annotations

import pytest

from actors.errors import BackupCreateError, OperationCancelledError
from actors.models import OperationKind, Phase
from actors.sandbox.operations import Operations


def test_progress_comes_from_the_running_operation() -> None:
    operations = Operations()
    assert operations.running is None
    with operations.run(OperationKind.BACKUP, "/workspace") as progress:
        progress.enter(Phase.UPLOADING, total=100, unit="bytes")
        progress.advance(60)
        progress.advance(-20)
        now = operations.running
        assert now is not None
        assert (now.phase, now.done, now.total, now.unit, now.dir) == ("uploading", 40, 100, "bytes", "/workspace")
        progress.advance(-1000)
        progress.set_done(-5)
        assert progress.snapshot().done == 0
        progress.enter(Phase.COMMITTING)
        assert progress.snapshot().total == 0
    assert operations.running is None
    assert [row.outcome for row in operations.ended] == ["ok"]


def test_a_cancellation_takes_effect_before_the_point_of_no_return() -> None:
    operations = Operations()
    assert not operations.cancel()
    with pytest.raises(OperationCancelledError), operations.run(OperationKind.RESTORE) as progress:
        assert operations.cancel()
        assert progress.cancelled.is_set()
        progress.point_of_no_return(Phase.MOUNTING)
    assert operations.ended[-1].outcome == "OPERATION_CANCELLED"


def test_a_cancellation_after_the_point_of_no_return_comes_too_late() -> None:
    operations = Operations()
    with operations.run(OperationKind.BACKUP) as progress:
        progress.point_of_no_return(Phase.COMMITTING)
        assert not operations.cancel()
        assert not progress.cancelled.is_set()
        progress.check()
        progress.enter(Phase.COMMITTING)
    assert operations.ended[-1].outcome == "ok"


@pytest.mark.parametrize(
    ("error", "outcome"), [(BackupCreateError("x"), "BACKUP_CREATE_FAILED"), (KeyError("x"), "INTERNAL")]
)
def test_a_failed_operation_is_recorded_by_its_code(error: Exception, outcome: str) -> None:
    operations = Operations()
    with pytest.raises(type(error)), operations.run(OperationKind.BACKUP, "/app") as progress:
        progress.backup_id = "an id"
        raise error
    (row,) = operations.ended
    assert (row.outcome, row.backup_id, row.dir, row.id) == (outcome, "an id", "/app", progress.id)
    assert row.started_at <= row.ended_at


def test_only_the_last_hundred_operations_are_kept() -> None:
    operations = Operations()
    for number in range(130):
        with operations.run(OperationKind.BACKUP, str(number)):
            pass
    assert [row.dir for row in operations.ended] == [str(number) for number in range(30, 130)]
