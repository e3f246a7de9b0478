"""A sandbox as the service describes it: its restored directories, recovery, events and limits."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from actors.models.backups import RestoreMode
from actors.models.base import Count, Model
from actors.models.operations import Operation, OperationRecord


class RestoredDirectory(Model):
    """A directory of the sandbox that came from a backup."""

    dir: str
    backup_id: str
    mode: RestoreMode
    driver: str | None = None
    restored_at: datetime


class DirectoryStatus(StrEnum):
    """The outcome for a directory that was to be recovered.

    `missing`: the sandbox serves nobody until it is there or given up. `forgotten`: it was given up.
    """

    RESTORED = "restored"
    MISSING = "missing"
    FORGOTTEN = "forgotten"


class RecoveredDirectory(Model):
    """A directory that a recovery brought back as it was at `taken_at`; or did not, for the reason in `error`."""

    dir: str
    backup_id: str
    taken_at: datetime
    error: str | None = None
    status: DirectoryStatus = DirectoryStatus.RESTORED


class Recovery(Model):
    """The recovery of a sandbox after the node with its files was lost: with these directories, and nothing else.

    Each directory is as it was at its `taken_at`: what was changed in it since is gone. `lost` are the writable roots
    that had held something which was in no backup, and is gone. `told` says whether an answer to a call has carried the
    news, as a header or to a Python caller.
    """

    at: datetime
    lost_node: str | None = None
    directories: list[RecoveredDirectory] = []
    lost: list[str] = []
    told: bool = True

    @property
    def lacks_anything(self) -> bool:
        """True if something could not be recovered at all."""
        return bool(self.lost) or any(row.error for row in self.directories)


class ForgetResult(Model):
    """The answer to a `forget` that succeeded: the forgotten directories, and why each had not come back."""

    success: Literal[True] = True
    forgotten: list[RecoveredDirectory]


class SandboxEvent(Model):
    """Something that happened to a sandbox. `node` is the identity of the data folder in which its files were."""

    kind: str
    at: datetime
    dir: str | None = None
    backup_id: str | None = None
    node: str | None = None


class EventList(Model):
    """The latest events of a sandbox, newest first."""

    events: list[SandboxEvent]


class CommandLimits(Model):
    """The limits that are in force on all commands of a sandbox together; null for one that its node cannot set."""

    memory_bytes: Count | None
    processes: Count | None


class SandboxInfo(Model):
    """The description of a sandbox, awake or not.

    `last_used_at` may lag by as long as the service puts off writing it. `epoch` counts the actors it has had. `limits`
    is null while it is not awake.
    """

    id: str
    running: bool
    created_at: datetime
    last_used_at: datetime | None = None
    epoch: Count = 0
    labels: dict[str, str] = {}
    recovery: Recovery | None = None
    awake_since: datetime | None = None
    restored: list[RestoredDirectory] = []
    operation: Operation | None = None
    recent: list[OperationRecord] = []
    commands: Count = 0
    limits: CommandLimits | None = None
