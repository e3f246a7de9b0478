"""The retention of a sandbox's backups: its policy, changes of it, and the outcome of a run."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from actors.models.backups import BackupId
from actors.models.base import Model

MAX_KEPT = 10_000
MAX_PINNED = 256

Kept = Annotated[int, Field(ge=1, le=MAX_KEPT)]
Pins = Annotated[list[BackupId], Field(max_length=MAX_PINNED)]


class Retention(Model):
    """The backups of a sandbox that are kept; all others are deleted. Without a number, nothing is deleted.

    `keep_last`: so many of the newest backups of each directory. `keep_daily`: of each directory the newest backup of
    each day (in UTC), for so many of the latest days that have one. `pinned`: these backups, for as long as they live.
    """

    keep_last: Kept | None = None
    keep_daily: Kept | None = None
    pinned: Pins = []

    @property
    def deletes(self) -> bool:
        """True if the policy lets any backup be deleted."""
        return self.keep_last is not None or self.keep_daily is not None


class RetentionChange(Model):
    """A change of a policy. Numbers that are not given, and other pins, stay."""

    keep_last: Kept | None = None
    keep_daily: Kept | None = None
    pin: Pins = []
    unpin: Pins = []

    def made_to(self, policy: Retention) -> dict[str, Any]:
        """The values of the changed policy, not validated yet."""
        gone = set(self.unpin)
        return {
            "keep_last": self.keep_last or policy.keep_last,
            "keep_daily": self.keep_daily or policy.keep_daily,
            "pinned": [each for each in dict.fromkeys([*policy.pinned, *self.pin]) if each not in gone],
        }


class RetentionRun(Model):
    """The options of a run. A dry run only says what it would do.

    A dry run may try a `policy`, instead of the one that is set. What deletes has to be set first.
    """

    dry_run: bool = False
    policy: Retention | None = None

    @model_validator(mode="after")
    def _only_dry_runs_try(self) -> Self:
        if self.policy is not None and not self.dry_run:
            raise ValueError("policy needs dry_run; set the policy first")
        return self


class KeepReason(StrEnum):
    """The reason why a backup is kept.

    `last`, `daily`, `pinned`: the policy says so. `no_rule`: the policy has no number. `checkpoint`: the sandbox is
    recovered from it. `restored`: a directory of the sandbox is restored from it at present. `pending`: it is being
    made. `sleep`: the service made it for a sleep, and deletes it itself. `future`: the clock that stamped it was ahead
    of the service's. `expired`: `gc` deletes it. `unusable`: its metadata is damaged, tampered with or a later
    release's.
    """

    LAST = "last"
    DAILY = "daily"
    PINNED = "pinned"
    NO_RULE = "no_rule"
    CHECKPOINT = "checkpoint"
    RESTORED = "restored"
    PENDING = "pending"
    SLEEP = "sleep"
    FUTURE = "future"
    EXPIRED = "expired"
    UNUSABLE = "unusable"


class RetainedBackup(Model):
    """A backup that a run looked at. `reasons` is empty for one that it deleted."""

    id: str
    dir: str | None = None
    created_at: datetime
    reasons: list[KeepReason] = []


class RetentionReport(Model):
    """The backups that a run kept, and those that it deleted or, in a dry run, would delete; newest first.

    `missing_pins` are pinned backups that do not exist any more. `interrupted` says that the policy was changed
    meanwhile: nothing was deleted after that.
    """

    dry_run: bool
    policy: Retention
    kept: list[RetainedBackup] = []
    deleted: list[RetainedBackup] = []
    missing_pins: list[str] = []
    interrupted: bool = False
