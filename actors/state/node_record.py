"""The record of a sandbox on its node, `sandbox.json`: the restored directories, and what a recovery has to bring back.

The commit point of a restore, and of each step of a recovery.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from actors.models import RestoredDirectory, RestoreMode
from actors.node.drivers import Driver
from actors.node.errors import CorruptRecordError
from actors.node.records import TwinFile


class Entry(BaseModel):
    """One restored directory. `taken_at` is when its backup was made; `layer` and `archive_sha256` are an overlay's."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    dir: str
    backup_id: str
    mode: Literal["overlay", "copy"]
    restored_at: datetime
    taken_at: datetime | None = None
    driver: Driver | None = None
    layer: str | None = None
    archive_sha256: str | None = None

    @property
    def is_mounted(self) -> bool:
        """Whether it is an overlay, and so a mount."""
        return self.layer is not None

    def lies_in(self, directory: str) -> bool:
        """Whether it is `directory`, or lies in it."""
        return self.dir == directory or self.dir.startswith(directory + "/")

    def public(self) -> RestoredDirectory:
        """As a caller sees it."""
        return RestoredDirectory(
            dir=self.dir,
            backup_id=self.backup_id,
            mode=RestoreMode(self.mode),
            driver=self.driver.value if self.driver else None,
            restored_at=self.restored_at,
        )


class RecoveryItem(BaseModel):
    """One directory that a recovery has to bring back. It is missing until it is settled.

    `error` is the code of what kept it from coming back when that was tried last. One that is settled with an error was
    given up.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    dir: str
    backup_id: str
    taken_at: datetime
    mode: Literal["overlay", "copy"] = "overlay"
    settled: bool = False
    error: str | None = None

    @property
    def kept_away_by(self) -> str:
        """Its error; also of one that nobody has tried, because it lies in another that is missing."""
        return self.error or "NOT_TRIED"


class RecoveryPlan(BaseModel):
    """The directories that have to come back from checkpoints before anybody may see the tree.

    `lost_node` is absent after a sleep.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    at: datetime
    lost_node: str | None = None
    directories: tuple[RecoveryItem, ...] = ()
    lost: tuple[str, ...] | None = None
    """The writable roots of which something is in no backup; None in the plan of an earlier release."""

    @property
    def missing(self) -> list[RecoveryItem]:
        """The directories that are not settled yet, outer ones before those inside them."""
        return sorted((wanted for wanted in self.directories if not wanted.settled), key=lambda wanted: wanted.dir)

    @property
    def given_up(self) -> list[RecoveryItem]:
        """The directories that will not come back, because a person has said so."""
        return [wanted for wanted in self.directories if wanted.settled and wanted.error]

    def settled(self, directory: str, *, error: str | None = None) -> RecoveryPlan:
        """The same, with one directory settled: it is back, or with an error, given up."""
        return self._changed(directory, settled=True, error=error)

    def failed(self, directory: str, error: str) -> RecoveryPlan:
        """The same, with what has kept one directory from coming back just now."""
        return self._changed(directory, settled=False, error=error)

    def _changed(self, directory: str, *, settled: bool, error: str | None) -> RecoveryPlan:
        changed = {"settled": settled, "error": error}
        return self.model_copy(
            update={
                "directories": tuple(
                    wanted.model_copy(update=changed) if wanted.dir == directory else wanted
                    for wanted in self.directories
                )
            }
        )


class Record(BaseModel):
    """sandbox.json on the node's disk."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: Literal[1] = 1
    created_at: datetime
    entries: tuple[Entry, ...] = ()
    recovery: RecoveryPlan | None = None


def kept_driver(file: Path, offered: Driver | None) -> Driver | None:
    """The driver for a sandbox's layers: that of the layers in its record, or else the one that its node offers.

    An upper layer never changes its driver, but for those of fuse-overlayfs, which `Layers.open` converts.
    """
    with contextlib.suppress(CorruptRecordError):
        record, _ = twin_file(file).read()
        entries = record.entries if record else ()
        recorded = [entry.driver for entry in entries if entry.is_mounted and entry.driver is not Driver.FUSE]
        return next((driver for driver in recorded if driver is not None), offered)
    return offered


def twin_file(file: Path) -> TwinFile[Record]:
    """The file of a record, which is kept twice."""
    return TwinFile(file, Record.model_validate_json)


def now() -> datetime:
    """The time, in whole milliseconds, as the bucket has it."""
    at = datetime.now(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
