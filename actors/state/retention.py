"""The decision which backups of a sandbox a retention policy keeps. A pure function of the backups and the state.

A run may be cut off at any instant, and the next one decides anew. That is sound because the decision is stable:
without some of the backups that it deletes, or with a newer backup, it still keeps and deletes the others as before
(`tests/unit/actors/test_retention_rules.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from actors.models import KeepReason, Retention
from storage.catalog import UnusableBackup
from storage.metadata import BackupRecord, SandboxState

Reasons = Mapping[str, frozenset[KeepReason]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backup, as the decision knows it. `dir` is None, and nothing else counts, if it is not usable."""

    id: str
    created_at: datetime
    dir: str | None
    expires_at: datetime | None = None
    of_sleep: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The backups to keep, each with the reasons, and those to delete; newest first."""

    kept: tuple[tuple[Candidate, tuple[KeepReason, ...]], ...]
    deleted: tuple[Candidate, ...]


def candidate(row: BackupRecord | UnusableBackup) -> Candidate:
    """The candidate for a row of the sandbox's list."""
    if isinstance(row, UnusableBackup):
        return Candidate(row.entry.backup_id, row.entry.created_at, None)
    return Candidate(row.id, row.created_at, row.place or row.dir, row.expires_at, bool(row.of_sleep))


def needed(state: SandboxState) -> Reasons:
    """The backups that the sandbox itself needs, whatever its policy says."""
    missing = state.recovery.directories if state.recovery else []
    rows: list[tuple[KeepReason, Iterable[str]]] = [
        (KeepReason.CHECKPOINT, [row.backup_id for row in state.checkpoints]),
        (KeepReason.CHECKPOINT, [row.backup_id for row in missing if row.error and row.status != "forgotten"]),
        (KeepReason.RESTORED, [row.backup_id for row in state.restored]),
        (KeepReason.PENDING, state.pending),
        (KeepReason.SLEEP, state.sleep_backups),
    ]
    reasons: dict[str, set[KeepReason]] = defaultdict(set)
    for reason, backup_ids in rows:
        for backup_id in backup_ids:
            reasons[backup_id].add(reason)
    return {backup_id: frozenset(why) for backup_id, why in reasons.items()}


def decide(backups: Iterable[Candidate], policy: Retention, needed: Reasons, *, now: datetime) -> Decision:
    """Decides which backups of one sandbox are kept.

    Only usable, unexpired backups that were not made for a sleep take one of the policy's places, and none whose time
    is still to come: a clock that was ahead must not push newer backups out.
    """
    rows = newest_first(backups)
    reasons: dict[str, set[KeepReason]] = defaultdict(set)
    counted: dict[str, list[Candidate]] = defaultdict(list)
    for each in rows:
        own = _own_reasons(each, now)
        reasons[each.id] |= own.union(needed.get(each.id, ()))
        if each.dir is not None and not own:
            counted[each.dir].append(each)
    for of_directory in counted.values():
        for each in of_directory[: policy.keep_last or 0]:
            reasons[each.id].add(KeepReason.LAST)
        for backup_id in _daily(of_directory, policy.keep_daily or 0):
            reasons[backup_id].add(KeepReason.DAILY)
    for backup_id in set(policy.pinned) & reasons.keys():
        reasons[backup_id].add(KeepReason.PINNED)
    if not policy.deletes:
        for why in reasons.values():
            why.add(KeepReason.NO_RULE)
    return Decision(
        kept=tuple((each, _in_order(reasons[each.id])) for each in rows if reasons[each.id]),
        deleted=tuple(each for each in rows if not reasons[each.id]),
    )


def newest_first(backups: Iterable[Candidate]) -> list[Candidate]:
    """The backups in order, the newest first. Of several backups of one instant, the greater id counts as newer."""
    return sorted(backups, key=lambda each: (each.created_at, each.id), reverse=True)


def _own_reasons(each: Candidate, now: datetime) -> set[KeepReason]:
    """The reasons to keep a backup that lie in itself. A backup with one of them takes no place of the policy."""
    if each.dir is None:
        return {KeepReason.UNUSABLE}
    found = set()
    if each.of_sleep:
        found.add(KeepReason.SLEEP)
    if each.created_at > now:
        found.add(KeepReason.FUTURE)
    if each.expires_at is not None and each.expires_at <= now:
        found.add(KeepReason.EXPIRED)
    return found


def _daily(newest_first: Sequence[Candidate], days: int) -> Collection[str]:
    """The newest backup of each of the latest `days` days that have any."""
    newest: dict[date, str] = {}
    for each in newest_first:
        day = each.created_at.astimezone(UTC).date()
        if day not in newest:
            if len(newest) == days:
                break
            newest[day] = each.id
    return newest.values()


def _in_order(reasons: Collection[KeepReason]) -> tuple[KeepReason, ...]:
    return tuple(reason for reason in KeepReason if reason in reasons)
