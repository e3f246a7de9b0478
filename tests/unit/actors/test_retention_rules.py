"""The decision which backups a policy keeps, against a model of it, and its stability."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actors.models import KeepReason, Retention, RetentionChange
from actors.state.retention import Candidate, Decision, decide, needed
from storage.metadata import Checkpoint, RecoveredDirectory, Recovery, RestoredDirectory, SandboxState

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
POLICY_REASONS = {KeepReason.LAST, KeepReason.DAILY, KeepReason.PINNED}


def made(hours_ago: float, *, dir: str | None = "/workspace", of_sleep: bool = False, ttl_h: float = 1e5) -> Candidate:
    at = NOW - timedelta(hours=hours_ago)
    return Candidate(str(uuid.uuid4()), at, dir, at + timedelta(hours=ttl_h), of_sleep)


CANDIDATES = st.lists(
    st.builds(
        made,
        st.integers(-30, 24 * 12) | st.floats(-1, 300),
        dir=st.sampled_from(["/workspace", "/workspace", "/app", None]),
        of_sleep=st.sampled_from([False, False, False, True]),
        ttl_h=st.sampled_from([1e5, 1e5, 1e5, 40]),
    ),
    max_size=25,
)
POLICIES = st.builds(
    Retention, keep_last=st.none() | st.integers(1, 6), keep_daily=st.none() | st.integers(1, 6), pinned=st.just([])
)


def ids(rows: tuple[Candidate, ...]) -> set[str]:
    return {row.id for row in rows}


def kept(decision: Decision) -> dict[str, tuple[KeepReason, ...]]:
    return {row.id: reasons for row, reasons in decision.kept}


def by_hand(rows: list[Candidate], policy: Retention) -> set[str]:
    """The backups that a policy with a number keeps, the plain way: directory by directory, day by day."""
    counted = [r for r in rows if r.dir and not r.of_sleep and r.created_at <= NOW and (r.expires_at or NOW) > NOW]
    keep = {r.id for r in rows} - {r.id for r in counted} | set(policy.pinned)
    for directory in {r.dir for r in counted}:
        own = sorted((r for r in counted if r.dir == directory), key=lambda r: (r.created_at, r.id))
        keep |= {r.id for r in own[-(policy.keep_last or 0) :]} if policy.keep_last else set()
        last_of_each_day = [list(group)[-1] for _, group in groupby(own, key=lambda r: f"{r.created_at:%Y-%m-%d}")]
        keep |= {r.id for r in last_of_each_day[-(policy.keep_daily or 0) :]} if policy.keep_daily else set()
    return keep


@given(CANDIDATES, POLICIES, st.data())
def test_a_policy_keeps_what_it_says_and_deletes_everything_else(
    rows: list[Candidate], policy: Retention, data: st.DataObject
) -> None:
    pinned = data.draw(st.lists(st.sampled_from(rows), max_size=3, unique=True)) if rows else []
    policy = policy.model_copy(update={"pinned": [row.id for row in pinned]})
    decision = decide(rows, policy, {}, now=NOW)
    assert ids(decision.deleted) | kept(decision).keys() == {row.id for row in rows}
    assert not ids(decision.deleted) & kept(decision).keys()
    assert all(kept(decision).values())
    if policy.deletes:
        assert kept(decision).keys() == by_hand(rows, policy) & {row.id for row in rows}
    else:
        assert not decision.deleted


@given(CANDIDATES, POLICIES, st.data())
def test_a_run_that_was_cut_off_is_continued_by_the_next_as_if_it_had_not_been(
    rows: list[Candidate], policy: Retention, data: st.DataObject
) -> None:
    whole = decide(rows, policy, {}, now=NOW)
    gone = set(data.draw(st.lists(st.sampled_from(whole.deleted)))) if whole.deleted else set()
    rest = decide([row for row in rows if row not in gone], policy, {}, now=NOW)
    assert kept(rest) == kept(whole)
    assert set(rest.deleted) == set(whole.deleted) - gone


@given(CANDIDATES, POLICIES)
def test_a_newer_backup_saves_no_other_one(rows: list[Candidate], policy: Retention) -> None:
    rows = [row for row in rows if row.created_at <= NOW]
    before = decide(rows, policy, {}, now=NOW)
    after = decide([*rows, made(0)], policy, {}, now=NOW)
    assert ids(before.deleted) <= ids(after.deleted)


@given(CANDIDATES, POLICIES, st.data())
def test_what_the_sandbox_needs_stays_and_takes_no_place_from_others(
    rows: list[Candidate], policy: Retention, data: st.DataObject
) -> None:
    wanted = data.draw(st.lists(st.sampled_from(rows), unique=True)) if rows else []
    reasons = {row.id: frozenset({KeepReason.CHECKPOINT}) for row in wanted}
    decision = decide(rows, policy, reasons, now=NOW)
    assert ids(decision.deleted) == ids(decide(rows, policy, {}, now=NOW).deleted) - reasons.keys()
    assert all(KeepReason.CHECKPOINT in kept(decision)[row.id] for row in wanted)


@given(CANDIDATES, POLICIES)
def test_the_order_of_the_list_does_not_matter(rows: list[Candidate], policy: Retention) -> None:
    assert decide(rows, policy, {}, now=NOW) == decide(rows[::-1], policy, {}, now=NOW)


def test_a_backup_from_the_future_takes_no_place() -> None:
    ahead, newest, older = made(-2), made(1), made(2)
    decision = decide([ahead, newest, older], Retention(keep_last=1, keep_daily=1), {}, now=NOW)
    assert kept(decision) == {ahead.id: (KeepReason.FUTURE,), newest.id: (KeepReason.LAST, KeepReason.DAILY)}


def test_days_are_those_of_utc() -> None:
    """An hour before midnight in New York is a day later in UTC."""
    new_york = timezone(timedelta(hours=-5))
    evening = Candidate("evening", datetime(2026, 11, 26, 23, 0, tzinfo=new_york), "/w")
    morning = Candidate("morning", datetime(2026, 11, 26, 12, 0, tzinfo=new_york), "/w")
    decision = decide([evening, morning], Retention(keep_daily=2), {}, now=NOW)
    assert kept(decision) == {"evening": (KeepReason.DAILY,), "morning": (KeepReason.DAILY,)}
    night = Candidate("night", datetime(2026, 11, 26, 18, 59, tzinfo=new_york), "/w")
    assert ids(decide([night, morning], Retention(keep_daily=2), {}, now=NOW).deleted) == {"morning"}


def test_days_without_a_backup_are_not_counted() -> None:
    rows = [made(1), made(24 * 100), made(24 * 200), made(24 * 300)]
    assert ids(decide(rows, Retention(keep_daily=3), {}, now=NOW).deleted) == {rows[3].id}


def test_expired_sleeping_and_unusable_backups_are_left_to_others() -> None:
    rows = [made(50, ttl_h=40), made(3, of_sleep=True), made(4, dir=None), made(5), made(6)]
    decision = decide(rows, Retention(keep_last=1), {}, now=NOW)
    assert kept(decision) == {
        rows[0].id: (KeepReason.EXPIRED,),
        rows[1].id: (KeepReason.SLEEP,),
        rows[2].id: (KeepReason.UNUSABLE,),
        rows[3].id: (KeepReason.LAST,),
    }


def test_the_state_names_what_the_sandbox_needs() -> None:
    a, b, c, d, e, f = (str(uuid.uuid4()) for _ in range(6))
    state = SandboxState(
        id="box",
        tenant="default",
        created_at=NOW,
        checkpoints=[Checkpoint(dir="/workspace", backup_id=a, taken_at=NOW)],
        restored=[RestoredDirectory(dir="/app", backup_id=b, mode="overlay", restored_at=NOW)],
        pending=[c],
        sleep_backups=[c, d],
        recovery=Recovery(
            at=NOW,
            directories=[
                RecoveredDirectory(dir="/tmp", backup_id=e, taken_at=NOW, error="TIMEOUT", status="missing"),
                RecoveredDirectory(dir="/home", backup_id=f, taken_at=NOW, error="TIMEOUT", status="forgotten"),
            ],
        ),
    )
    assert needed(state) == {
        a: {KeepReason.CHECKPOINT},
        b: {KeepReason.RESTORED},
        c: {KeepReason.PENDING, KeepReason.SLEEP},
        d: {KeepReason.SLEEP},
        e: {KeepReason.CHECKPOINT},
    }


def test_a_change_keeps_what_it_does_not_name() -> None:
    a, b, c = (str(uuid.uuid4()) for _ in range(3))
    policy = Retention(keep_last=3, pinned=[a, b])
    change = RetentionChange(keep_daily=7, pin=[c, c, b], unpin=[a])
    assert Retention(**change.made_to(policy)) == Retention(keep_last=3, keep_daily=7, pinned=[b, c])


@pytest.mark.parametrize("number", [0, -1, 10_001, 1.5, "3", True])
def test_a_number_that_keeps_nothing_or_is_none_is_refused(number: object) -> None:
    for name in ("keep_last", "keep_daily"):
        with pytest.raises(ValidationError):
            Retention.model_validate({name: number})


def test_pins_are_limited() -> None:
    most = [str(uuid.uuid4()) for _ in range(256)]
    assert len(Retention(pinned=most).pinned) == 256
    with pytest.raises(ValidationError):
        Retention(pinned=[*most, str(uuid.uuid4())])
