"""The changes of a sandbox's state: pure functions, from one state in the bucket to the next.

They also convert a node's record of the sandbox into the terms of the state.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from actors.models import DirectoryStatus
from actors.state.document import MAX_ROWS, happened, with_checkpoint
from actors.state.node_record import Entry, Record
from storage.metadata import (
    Checkpoint,
    Event,
    RecoveredDirectory,
    Recovery,
    RestoredDirectory,
    SandboxState,
)

TAKEN_OVER = "taken_over"
"""The event of a takeover: the sandbox is to be recovered on another node."""
_BEGINNINGS = (TAKEN_OVER, "created", "woke", "recovered", "slept")
"""Events that determine where the sandbox's files are from then on."""


def taken_up(state: SandboxState, record: Record, *, node: str, unsaved: Sequence[str] | None) -> SandboxState:
    """The state of a sandbox whose files are on `node`. Its restored directories are those of the node's record.

    `unsaved` are the writable roots with content that is in no checkpoint; None if no actor has looked.
    """
    restored = restored_in(record)
    rows = sorted(zip(restored, latest_entries(record), strict=True), key=lambda pair: pair[0].restored_at)
    for entry in [entry for row, entry in rows if not _is_reported(state, row)]:  # not reported by the previous actor
        state = with_checkpoint(state, checkpoint_in(entry))
    created_at = min(state.created_at, record.created_at)
    state = state.model_copy(update={"restored": restored, "created_at": created_at})
    if unsaved is not None:
        state = state.model_copy(update={"unsaved": list(unsaved)})
    recovered = recovery_in(record, state.recovery)
    if recovered is not None and recovered != state.recovery:  # not reported either
        return after_recovery(state, record)
    return happened(state, "created" if state.epoch == 0 else "woke", node=node)


def taken_over(state: SandboxState, *, node: str) -> SandboxState:
    """The state of a sandbox that is to be recovered on `node`, with an event that names the node that had its files.

    A second attempt on this node keeps the event of the first, since the state then names this node.
    """
    state = state.model_copy(update={"restored": []})
    if state.node == node and begun_takeover(state) is not None:
        return state
    return happened(state, TAKEN_OVER, node=state.node)


def begun_takeover(state: SandboxState) -> Event | None:
    """The event of a takeover that has not ended yet; None if there is none."""
    last = next((event for event in reversed(state.events) if event.kind in _BEGINNINGS), None)
    return last if last is not None and last.kind == TAKEN_OVER else None


def without_pending(state: SandboxState, backup_id: str) -> SandboxState:
    """The state without this pending backup, which is settled."""
    return state.model_copy(update={"pending": [other for other in state.pending if other != backup_id]})


def without_sleep_backups(state: SandboxState, deleted: Collection[str]) -> SandboxState:
    """The state without these backups, which were made for a sleep and are deleted."""
    left = [backup_id for backup_id in state.sleep_backups if backup_id not in deleted]
    return state.model_copy(update={"sleep_backups": left})


def latest_entries(record: Record) -> tuple[Entry, ...]:
    """The restored directories that fit into the state: the last `MAX_ROWS`."""
    return record.entries[-MAX_ROWS:]


def _is_reported(state: SandboxState, row: RestoredDirectory) -> bool:
    """Tells whether the state's checkpoints take a restore into account."""
    slept_at = next((event.at for event in reversed(state.events) if event.kind == "slept"), None)
    if state.node is None and slept_at is not None:  # a sleep makes checkpoints of everything
        return row.restored_at <= slept_at
    return any((row.dir, row.backup_id, row.restored_at) == (r.dir, r.backup_id, r.restored_at) for r in state.restored)


def restored_in(record: Record) -> list[RestoredDirectory]:
    """The restored directories in the terms of the state: the `MAX_ROWS` that were restored last."""
    return [RestoredDirectory.model_validate(entry, from_attributes=True) for entry in latest_entries(record)]


def checkpoint_in(entry: Entry) -> Checkpoint:
    """The checkpoint of a restored directory: the backup that it was restored from."""
    return Checkpoint(dir=entry.dir, backup_id=entry.backup_id, taken_at=entry.content_at, mode=entry.mode)


def after_restore(state: SandboxState, record: Record, entry: Entry) -> SandboxState:
    """The state of a sandbox in which `entry` was restored. The record may be newer than that restore."""
    if entry in record.entries:
        rows = zip(restored_in(record), latest_entries(record), strict=True)
        reported = [row for row, other in rows if other == entry or _is_reported(state, row)]
        state = with_checkpoint(state, checkpoint_in(entry)).model_copy(update={"restored": reported})
    return happened(state, "restored", dir=entry.dir, backup_id=entry.backup_id)


def recovery_in(record: Record, known: Recovery | None = None) -> Recovery | None:
    """The outcome of a recovery in the terms of the state. None if there is nothing to report.

    A recovery is reported if its node was lost, if a directory is missing or forgotten, or if the state has a report of
    it already (`known`). So a recovery after a sleep that brought everything back is not.
    """
    plan = record.recovery
    if plan is None:
        return None
    recovery = Recovery.model_validate(plan, from_attributes=True, strict=False)
    if plan.lost_node is None and not plan.forgotten:  # no caller has to be informed
        recovery = recovery.model_copy(update={"lost": None})
    if known is not None and known.at == recovery.at:
        return recovery.model_copy(update={"told_at": known.told_at})
    return recovery if plan.lost_node is not None or plan.missing or plan.forgotten else None


def after_recovery(state: SandboxState, record: Record) -> SandboxState:
    """The state of a sandbox whose recovery has ended, or has brought back what it could.

    Forgotten directories lose their checkpoints. Missing ones keep theirs: if this node is lost too, the next one tries
    to bring them back.
    """
    plan = record.recovery
    gone = {(row.dir, row.backup_id) for row in plan.forgotten} if plan else set()
    checkpoints = [row for row in state.checkpoints if (row.dir, row.backup_id) not in gone]
    known = {(row.dir, row.backup_id) for row in checkpoints}
    reported = recovery_in(record, state.recovery)
    changed = {
        "unsaved": [],
        "restored": [row for row in restored_in(record) if (row.dir, row.backup_id) in known],
        "checkpoints": checkpoints,
        "recovery": reported or _without_missing(state.recovery),
    }
    state = state.model_copy(update=changed)
    if plan is not None and plan.missing:
        return state
    if plan is None or reported is None or _has_happened(state, "recovered", since=plan.at):
        return happened(state, "woke")
    for root in plan.lost or ():
        state = happened(state, "lost", dir=root, node=plan.lost_node)
    return happened(state, "recovered")


def _has_happened(state: SandboxState, kind: str, *, since: datetime) -> bool:
    return any(event.kind == kind and event.at >= since for event in state.events)


def with_unmounted(state: SandboxState, entry: Entry, error: str) -> SandboxState:
    """The state of a sandbox whose files are here, with one overlay that could not be mounted."""
    recovery = state.recovery or Recovery(at=datetime.now(UTC))
    row = RecoveredDirectory.model_validate(entry.missing_for(error), from_attributes=True)
    others = [other for other in recovery.directories if other.dir != entry.dir]
    return state.model_copy(update={"recovery": recovery.model_copy(update={"directories": [*others, row]})})


def missing_in(recovery: Recovery) -> list[RecoveredDirectory]:
    """The directories that the state calls missing."""
    return [row for row in recovery.directories if row.status == DirectoryStatus.MISSING]


def _without_missing(recovery: Recovery | None) -> Recovery | None:
    """The state's recovery without its missing directories, once everything is mounted."""
    if recovery is None or not missing_in(recovery):
        return recovery
    left = [row for row in recovery.directories if row.status != DirectoryStatus.MISSING]
    return recovery.model_copy(update={"directories": left}) if left or recovery.lost_node else None


def after_acknowledgement(state: SandboxState, at: datetime) -> SandboxState:
    """The state once a caller was surely informed of the recovery of that instant: no other caller has to be."""
    recovery = state.recovery
    if recovery is None or recovery.at != at or recovery.told_at is not None:
        return state
    return state.model_copy(update={"recovery": recovery.model_copy(update={"told_at": datetime.now(UTC)})})


def after_forgetting(state: SandboxState, record: Record, directories: Collection[str]) -> SandboxState:
    """The state of a sandbox in which these directories were just forgotten."""
    rows = record.recovery.forgotten if record.recovery else []
    for row in rows:
        if row.dir in directories:
            state = happened(state, "forgotten", dir=row.dir, backup_id=row.backup_id)
    return after_recovery(state, record).model_copy(update={"unsaved": state.unsaved})


def asleep_in_bucket(state: SandboxState, checkpoints: Sequence[Checkpoint], slept_at: datetime) -> SandboxState:
    """The state of a sandbox whose files are, from `slept_at` on, in these checkpoints only."""
    changed = {
        "node": None,
        "cluster_node": None,
        "slept_on": state.node,
        "restored": [],
        "checkpoints": list(checkpoints),
        "unsaved": [],
    }
    return happened(state.model_copy(update=changed), "slept", at=slept_at)
