"""Operations that go through the mailbox."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from actors.models.base import Count, Model


class Phase(StrEnum):
    """The current phase of a running operation."""

    WAITING = "waiting"
    SCANNING = "scanning"
    COMPRESSING = "compressing"
    UPLOADING = "uploading"
    COMMITTING = "committing"
    DOWNLOADING = "downloading"
    CONVERTING = "converting"
    EXTRACTING = "extracting"
    MOUNTING = "mounting"


class OperationKind(StrEnum):
    """The operations that go through the mailbox."""

    BACKUP = "backup"
    RESTORE = "restore"
    RECOVER = "recover"
    DESTROY = "destroy"


class Operation(Model):
    """The operation that holds the mailbox. `done` of `total` counts `unit`s of the current phase."""

    id: str
    kind: OperationKind
    dir: str | None = None
    phase: Phase = Phase.WAITING
    done: Count = 0
    total: Count = 0
    unit: Literal["files", "bytes"] = "files"
    started_at: datetime


class OperationRecord(Model):
    """An operation that has ended. Times are UTC, read from one clock: the node's."""

    id: str
    kind: OperationKind
    dir: str | None = None
    backup_id: str | None = None
    started_at: datetime
    ended_at: datetime
    outcome: str = Field(description='"ok", or the code of the error')
