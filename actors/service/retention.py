"""Retention: the policy of each sandbox in its state document, and the deletion of the backups that it does not keep.

    step      leaves                              undone by
    decide    nothing
    check     nothing
    delete    some of the batch's backups gone    nothing: the next run decides anew, and goes on

A run keeps no note of its own. The decision is stable (`actors.state.retention`), and each backup is deleted as by a
call of its tenant: metadata first, so that it is whole or gone. What is left of a deletion that failed half way is
removed by the collector. Nothing here wakes a sandbox.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime

from actors.errors import (
    BackupNotFoundError,
    DocumentDamagedError,
    HoldfastError,
    InvalidRequestError,
    SandboxNotFoundError,
)
from actors.faults import reading
from actors.logs import log
from actors.metrics import DELETED_BACKUPS, UNMETERED, Meter
from actors.models import (
    KeepReason,
    RetainedBackup,
    Retention,
    RetentionChange,
    RetentionReport,
    RetentionRun,
    validated,
)
from actors.sandbox.steps import RetentionStep, step
from actors.service.states import reading_state, state_of
from actors.state import retention as rules
from actors.state.beside import changed_beside_its_actor
from storage import metadata
from storage.catalog import BackupCatalog
from storage.metadata import SandboxState

_BATCH = 32
_DELETERS = 4
_MAX_WAITING = 10_000


@dataclass(frozen=True, slots=True)
class SandboxRetention:
    """The policies of all sandboxes of one bucket, and the runs that apply them."""

    catalog: Callable[[], BackupCatalog]
    """Returns the catalog. Raises InvalidBackupConfigError while no bucket is configured."""
    delete: Callable[[str, str], None]
    """Deletes a backup of a tenant, see `Service.delete_backup`."""
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    meter: Meter = UNMETERED

    def policy(self, tenant: str, sandbox: str) -> Retention:
        """Returns the policy of a sandbox: an empty one if none was set. Raises SandboxNotFoundError."""
        return _policy(state_of(self.catalog(), tenant, sandbox))

    def set(self, tenant: str, sandbox: str, wanted: Retention) -> Retention:
        """Replaces the policy of a sandbox; deletes nothing. A sandbox without a state gets one.

        Raises:
            BackupNotFoundError: a backup that is newly pinned is none of this sandbox; nothing was changed.
            InvalidRequestError: it was made for a sleep; nothing was changed.
            StorageUnavailableError: the policy may or may not have been changed; set it again.
        """
        catalog = self.catalog()
        with reading_state():
            if wanted == Retention() and catalog.sandboxes.find_state(tenant, sandbox) is None:  # nothing to remove
                return wanted
        return self._change(tenant, sandbox, lambda _: wanted)

    def change(self, tenant: str, sandbox: str, change: RetentionChange) -> Retention:
        """Changes the policy of a sandbox; returns the new one. Raises like `set`."""
        return self._change(tenant, sandbox, lambda policy: validated(Retention, change.made_to(policy)))

    def _change(self, tenant: str, sandbox: str, change: Callable[[Retention], Retention]) -> Retention:
        catalog = self.catalog()
        checked: set[str] = set()

        def changed(state: SandboxState) -> SandboxState:
            before = _policy(state)
            after = change(before)
            for backup_id in {*after.pinned} - {*before.pinned} - checked:
                _check_pin(catalog, tenant, sandbox, backup_id)
                checked.add(backup_id)
            stored = metadata.Retention(**after.model_dump()) if after != Retention() else None
            return state.model_copy(update={"retention": stored})

        with reading_state():
            return _policy(changed_beside_its_actor(catalog, tenant, sandbox, changed, what="rules of retention"))

    def apply(self, tenant: str, sandbox: str, *, dry_run: bool = False) -> Sequence[str]:
        """Deletes like `run`, and returns the ids; reads no metadata if the policy keeps that many backups anyway.

        So the first backups that a policy keeps cost one listing each, and not as many reads as there are backups.
        """
        policy = _policy(state_of(self.catalog(), tenant, sandbox))
        if not policy.deletes:
            return ()
        with reading("sandbox"):
            if policy.keep_last and not self.catalog().has_more_backups(tenant, sandbox, policy.keep_last):
                return ()
        return [each.id for each in self.run(tenant, sandbox, RetentionRun(dry_run=dry_run)).deleted]

    def run(self, tenant: str, sandbox: str, options: RetentionRun) -> RetentionReport:
        """Deletes the backups that the policy does not keep, or only says which.

        Raises:
            SandboxNotFoundError: it has no state, and so no policy.
            HoldfastError: from the bucket; what was deleted until then stays deleted, and the next run goes on.
        """
        with step(RetentionStep.DECIDE):
            state = state_of(self.catalog(), tenant, sandbox)
            policy = options.policy or _policy(state)
            with reading("sandbox"):
                found = self.catalog().all_rows(tenant, sandbox)
                rows = rules.newest_first(map(rules.candidate, found))
            decision = rules.decide(rows, policy, rules.needed(state), now=self.clock())
        outcome = _Outcome(kept={each.id: why for each, why in decision.kept})
        if options.dry_run:
            outcome.deleted.update(each.id for each in decision.deleted)
        else:
            self._delete(tenant, sandbox, policy, decision.deleted, outcome)
        return _report(rows, policy, outcome, dry_run=options.dry_run)

    def _delete(
        self, tenant: str, sandbox: str, policy: Retention, doomed: Sequence[rules.Candidate], outcome: _Outcome
    ) -> None:
        """Deletes backups in batches, the oldest first. Looks at the state before each: it may need some by now."""
        oldest_first = doomed[::-1]
        for start in range(0, len(oldest_first), _BATCH):
            batch = oldest_first[start : start + _BATCH]
            with step(RetentionStep.CHECK):
                needed = self._still_needed(tenant, sandbox, policy)
            if needed is None:
                log.warning("retention_interrupted", sandbox=sandbox)
                outcome.interrupted = True
                return
            outcome.kept.update((each.id, tuple(needed[each.id])) for each in batch if each.id in needed)
            with step(RetentionStep.DELETE), ThreadPoolExecutor(_DELETERS, thread_name_prefix="retention") as pool:
                unneeded = [each.id for each in batch if each.id not in needed]
                ends = [pool.submit(copy_context().run, self._delete_one, tenant, each, outcome) for each in unneeded]
            for end in ends:
                end.result()

    def _delete_one(self, tenant: str, backup_id: str, outcome: _Outcome) -> None:
        try:
            self.delete(tenant, backup_id)
        except BackupNotFoundError:  # deleted meanwhile
            return
        except InvalidRequestError:  # a sandbox sleeps in it by now
            outcome.kept[backup_id] = (KeepReason.SLEEP,)
        except DocumentDamagedError:
            outcome.kept[backup_id] = (KeepReason.UNUSABLE,)
        else:
            outcome.deleted.add(backup_id)
            self.meter.add(DELETED_BACKUPS, "retention")
            log.info("backup_deleted", backup=backup_id, reason="retention")

    def _still_needed(self, tenant: str, sandbox: str, policy: Retention) -> rules.Reasons | None:
        """The backups that the sandbox needs by now; None if it has another policy by now, or is gone."""
        try:
            state = state_of(self.catalog(), tenant, sandbox)
        except SandboxNotFoundError:
            return None
        return rules.needed(state) if _policy(state) == policy else None


@dataclass(slots=True)
class _Outcome:
    """The outcome of a run for each backup, by id."""

    kept: dict[str, tuple[KeepReason, ...]]
    deleted: set[str] = field(default_factory=set)
    interrupted: bool = False


class RetentionQueue:
    """The sandboxes whose policy is to be applied, because a backup was made. Thread-safe; each waits once at most.

    It is in memory only, and bounded: what is lost with the process, or finds no room, is done after the next backup or
    by the next collection.
    """

    def __init__(self, apply: Callable[[str, str], object]) -> None:
        self._apply = apply
        self._waiting: dict[tuple[str, str], None] = {}
        self._changed = threading.Condition()

    def add(self, tenant: str, sandbox: str) -> None:
        """Adds a sandbox. Returns at once."""
        with self._changed:
            if len(self._waiting) < _MAX_WAITING:
                self._waiting.setdefault((tenant, sandbox))
                self._changed.notify()

    def step(self) -> float:
        """Waits for a sandbox, and applies its policy once. Returns the pause until the next step: none."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            tenant, sandbox = next(iter(self._waiting))
            del self._waiting[tenant, sandbox]
        try:
            self._apply(tenant, sandbox)
        except HoldfastError as e:
            log.warning("retention_failed", sandbox=sandbox, error=e.code, detail=e.message)
        return 0.0


def _policy(state: SandboxState) -> Retention:
    stored = state.retention
    if stored is None:
        return Retention()
    # The limits of requests do not apply to what is stored: a later release may have greater ones.
    return Retention.model_construct(
        keep_last=stored.keep_last, keep_daily=stored.keep_daily, pinned=list(stored.pinned)
    )


def _check_pin(catalog: BackupCatalog, tenant: str, sandbox: str, backup_id: str) -> None:
    with reading("such backup"):
        record = catalog.get(tenant, backup_id)
    if record.sandbox != sandbox:
        raise BackupNotFoundError("The sandbox has no such backup.", context={"backup": backup_id})
    if record.of_sleep:
        raise InvalidRequestError(
            "The backup was made for a sleep, and the service deletes it when no sleep needs it.",
            hint="Back the sandbox up, and pin that backup.",
            context={"backup": backup_id},
        )


def _report(
    newest_first: Sequence[rules.Candidate], policy: Retention, outcome: _Outcome, *, dry_run: bool
) -> RetentionReport:
    return RetentionReport(
        dry_run=dry_run,
        policy=policy,
        kept=[_shown(each, outcome.kept[each.id]) for each in newest_first if each.id in outcome.kept],
        deleted=[_shown(each, ()) for each in newest_first if each.id in outcome.deleted],
        missing_pins=sorted(set(policy.pinned) - {each.id for each in newest_first}),
        interrupted=outcome.interrupted,
    )


def _shown(each: rules.Candidate, reasons: Sequence[KeepReason]) -> RetainedBackup:
    return RetainedBackup(id=each.id, dir=each.dir, created_at=each.created_at, reasons=list(reasons))
