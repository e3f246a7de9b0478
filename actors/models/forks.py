"""A fork: many sandboxes made from one backup in one call, each with an outcome of its own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from actors.models.backups import BackupId, RestoreMode
from actors.models.base import Model
from actors.models.names import SandboxId
from actors.models.paths import BackupDir

MAX_FORKS = 256
"""Largest number of sandboxes that one call makes."""


def _distinct(values: list[str]) -> list[str]:
    if len(set(values)) != len(values):
        raise ValueError("must not name a sandbox twice")
    return values


SandboxNames = Annotated[
    list[SandboxId],
    Field(min_length=1, max_length=MAX_FORKS, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_distinct),
]


class ForkOptions(Model):
    """A request for sandboxes from one backup: `count` of them with names of the service's choice, or `sandboxes`.

    `dir` is where the backup is restored in each; without it, where it came from. `mode` is as for a restore.
    """

    count: Annotated[int, Field(ge=1, le=MAX_FORKS)] | None = None
    sandboxes: SandboxNames | None = None
    dir: BackupDir | None = None
    mode: Annotated[RestoreMode, Field(strict=False)] | None = None

    def model_post_init(self, context: Any, /) -> None:
        if (self.count is None) == (self.sandboxes is None):
            raise ValueError('give either "count" or "sandboxes"')


class ForkOrder(Model):
    """A fork as the service gets it: the backup, and the name of each sandbox."""

    backup_id: BackupId
    sandboxes: SandboxNames
    dir: BackupDir | None = None
    mode: Annotated[RestoreMode, Field(strict=False)] | None = None


class ForkError(Model):
    """The error that kept one sandbox from being made, as the answer to a restore would have said it."""

    code: str
    error: str
    context: dict[str, Any] = {}
    hint: str | None = None
    retryable: bool = False


class Fork(Model):
    """The outcome for one sandbox. `existed` is true if an earlier call had made it: it was left as it is.

    `mode` is as in the answer to a restore. `error` is there only if it is not made.
    """

    id: str
    success: bool
    existed: bool = False
    mode: RestoreMode | None = None
    error: ForkError | None = None


class ForkResult(Model):
    """The outcomes of a fork, in the order of the names. `success` is true if all sandboxes are there."""

    success: bool
    backup_id: str
    dir: str
    forks: list[Fork]
