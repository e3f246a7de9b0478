"""The location of a sandbox's files, for every row of the table in `actors.state.location`."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from actors.errors import FilesElsewhereError, SandboxUnavailableError
from actors.state.document import NodeRef
from actors.state.location import Origin, origin, unknown
from storage.metadata import SandboxState

HERE = NodeRef("here", "node-1")
REFUSED = None


def state(*, epoch: int = 3, node: str | None = None, slept_on: str | None = None) -> SandboxState:
    cluster_node = f"cluster-{node}" if node else None
    return SandboxState(
        id="box",
        tenant="default",
        created_at=datetime.now(UTC),
        epoch=epoch,
        node=node,
        cluster_node=cluster_node,
        slept_on=slept_on,
    )


NOTHING, NEVER_TAKEN_UP = None, state(epoch=0)
OURS, OTHERS = state(node="here"), state(node="other")
OF_AN_EARLIER_RELEASE = state(epoch=0, node="other")
ASLEEP_FROM_HERE, ASLEEP_FROM_ELSEWHERE, ASLEEP = state(slept_on="here"), state(slept_on="other"), state()

TABLE = [
    # columns: the node has a record, the bucket's state, that node is lost, the origin of the content
    (True, NOTHING, False, Origin.HERE),
    (True, NEVER_TAKEN_UP, False, Origin.HERE),
    (True, OURS, False, Origin.HERE),
    (True, OURS, True, Origin.HERE),
    (True, ASLEEP_FROM_HERE, False, Origin.HERE),
    (False, ASLEEP_FROM_HERE, False, Origin.SLEEP),
    (True, ASLEEP_FROM_ELSEWHERE, False, Origin.SLEEP),
    (False, ASLEEP_FROM_ELSEWHERE, False, Origin.SLEEP),
    (True, ASLEEP, False, Origin.SLEEP),
    (False, ASLEEP, False, Origin.SLEEP),
    (False, NOTHING, False, Origin.AFRESH),
    (False, NEVER_TAKEN_UP, False, Origin.AFRESH),
    (False, OURS, False, Origin.LOSS),
    (True, OTHERS, True, Origin.LOSS),
    (False, OTHERS, True, Origin.LOSS),
    (True, OTHERS, False, REFUSED),
    (False, OTHERS, False, REFUSED),
    (True, OF_AN_EARLIER_RELEASE, False, REFUSED),
    (False, OF_AN_EARLIER_RELEASE, True, Origin.LOSS),
]


@pytest.mark.parametrize(("has_record", "found", "lost", "expected"), TABLE)
def test_the_files_are_where_the_table_says(
    has_record: bool, found: SandboxState | None, lost: bool, expected: Origin | None
) -> None:
    asked: list[tuple[str, str | None]] = []

    def is_lost(identity: str, cluster_node: str | None) -> bool:
        asked.append((identity, cluster_node))
        return lost

    if expected is REFUSED:
        with pytest.raises(FilesElsewhereError) as raised:
            origin(found, has_record=has_record, place=HERE, is_lost=is_lost)
        assert raised.value.context == {"outcome": "not_executed", "reason": "ELSEWHERE"}
    else:
        assert origin(found, has_record=has_record, place=HERE, is_lost=is_lost) is expected
    assert asked in ([], [("other", "cluster-other")])
    assert bool(asked) == (found in (OTHERS, OF_AN_EARLIER_RELEASE))


def test_without_the_buckets_answer_only_files_on_this_node_are_used() -> None:
    assert unknown(has_record=True) is Origin.HERE
    with pytest.raises(SandboxUnavailableError) as raised:
        unknown(has_record=False)
    assert raised.value.context == {"outcome": "not_executed", "reason": "STORAGE_UNAVAILABLE"}


def test_content_comes_from_checkpoints_after_a_sleep_or_a_loss() -> None:
    assert {kind for kind in Origin if kind.is_elsewhere} == {Origin.SLEEP, Origin.LOSS}
