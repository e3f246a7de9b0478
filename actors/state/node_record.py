"""The record of a sandbox on its node, `sandbox.json`: the restored directories, and the plan of a recovery.

Writing it is the commit point of a restore, and of each step of a recovery.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from actors.models import DirectoryStatus
from actors.node.drivers import Driver
from actors.node.errors import CorruptRecordError
from actors.node.records import TwinFile


class Entry(BaseModel):
    """One restored directory. Its backup was made at `taken_at`. Only overlays have `layer` and `archive_sha256`.

    The overlay of an incremental backup lies over several archives: `archive_sha256` is the oldest one's digest, and
    `above` has those of the others, oldest first.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    dir: str
    backup_id: str
    mode: Literal["overlay", "copy"]
    restored_at: datetime
    taken_at: datetime | None = None
    driver: Driver | None = None
    layer: str | None = None
    archive_sha256: str | None = None
    above: tuple[str, ...] | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the archives that it is mounted from, oldest first; none for a copy."""
        return () if self.archive_sha256 is None else (self.archive_sha256, *(self.above or ()))

    @property
    def is_mounted(self) -> bool:
        """True if it is an overlay, and so a mount."""
        return self.layer is not None

    def lies_in(self, directory: str) -> bool:
        """Tells whether it is `directory` or lies inside it."""
        return self.dir == directory or self.dir.startswith(directory + "/")

    @property
    def content_at(self) -> datetime:
        """The time of its backup, or of its restore where an earlier release did not record that."""
        return self.taken_at or self.restored_at

    def missing_for(self, error: str) -> RecoveryItem:
        """The item of a recovery in which it is missing, because it cannot be mounted for `error`."""
        return RecoveryItem(
            dir=self.dir, backup_id=self.backup_id, taken_at=self.content_at, mode=self.mode, error=error
        )


class RecoveryItem(BaseModel):
    """One directory that a recovery has to bring back. It is missing until it is settled: back, or forgotten.

    `error` is the code of the last failed attempt. A directory that is settled with an error was forgotten.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    dir: str
    backup_id: str
    taken_at: datetime
    mode: Literal["overlay", "copy"] = "overlay"
    settled: bool = False
    error: str | None = None

    @property
    def status(self) -> DirectoryStatus:
        """Its outcome so far."""
        if not self.settled:
            return DirectoryStatus.MISSING
        return DirectoryStatus.FORGOTTEN if self.error else DirectoryStatus.RESTORED

    @property
    def kept_away_by(self) -> str:
        """Its error; `NOT_TRIED` if there was no attempt, because it lies inside another missing directory."""
        return self.error or "NOT_TRIED"


class RecoveryPlan(BaseModel):
    """The directories that have to come back from checkpoints before anybody may see the tree.

    `lost_node` is None after a sleep.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    at: datetime
    lost_node: str | None = None
    directories: tuple[RecoveryItem, ...] = ()
    lost: tuple[str, ...] | None = None
    """The writable roots with content that is in no backup; None in the plan of an earlier release."""

    @property
    def missing(self) -> list[RecoveryItem]:
        """The directories that are not settled yet, outer ones before inner ones."""
        return sorted((wanted for wanted in self.directories if not wanted.settled), key=lambda wanted: wanted.dir)

    @property
    def forgotten(self) -> list[RecoveryItem]:
        """The directories that a person chose to forget, or replaced by another restore."""
        return [wanted for wanted in self.directories if wanted.settled and wanted.error]

    def settled(self, directory: str, *, error: str | None = None) -> RecoveryPlan:
        """The plan with one directory settled: it is back or, with an error, forgotten."""
        return self._changed(directory, settled=True, error=error)

    def failed(self, directory: str, error: str) -> RecoveryPlan:
        """The plan with the error of the latest attempt to bring one directory back."""
        return self._changed(directory, settled=False, error=error)

    def with_item(self, item: RecoveryItem) -> RecoveryPlan:
        """The plan with one more directory, or with another item for a directory that it has."""
        others = tuple(other for other in self.directories if other.dir != item.dir)
        return self.model_copy(update={"directories": (*others, item)})

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
    """The content of sandbox.json on the node's disk."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: Literal[1] = 1
    created_at: datetime
    entries: tuple[Entry, ...] = ()
    recovery: RecoveryPlan | None = None


def kept_driver(file: Path, offered: Driver | None) -> Driver | None:
    """The driver for a sandbox's layers: that of the layers in its record, otherwise the one that its node offers.

    An upper never changes its driver, except those of fuse-overlayfs, which `Layers.open` converts.
    """
    with contextlib.suppress(CorruptRecordError):
        record, _ = twin_file(file).read()
        entries = record.entries if record else ()
        recorded = [entry.driver for entry in entries if entry.is_mounted and entry.driver is not Driver.FUSE]
        return next((driver for driver in recorded if driver is not None), offered)
    return offered


def twin_file(file: Path) -> TwinFile[Record]:
    """The file of a record, which is kept in two copies."""
    return TwinFile(file, Record.model_validate_json)


def now() -> datetime:
    """The time in whole milliseconds, the precision of the bucket's documents."""
    at = datetime.now(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
