"""A sandbox's record on its node, as the sandbox's actor reads and changes it. Each change is one write."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from actors.node.drivers import Driver
from actors.node.errors import CorruptRecordError
from actors.node.records import TwinFile
from actors.state.node_record import Entry, Record, RecoveryItem, RecoveryPlan, now


class RestoredRecord:
    """The record of one sandbox. Each change is written whole or not at all, and raises OSError if it is not."""

    def __init__(self, twin: TwinFile[Record]) -> None:
        self._twin = twin
        self._damage: CorruptRecordError | None = None
        self._is_on_disk = False
        """True if both copies of the record on the disk are good."""
        self.value = Record(created_at=now())
        self.read()

    def read(self) -> None:
        """Reads the record, which another process of this node may have written meanwhile."""
        try:
            found, is_good = self._twin.read()
            self.value, self._damage = found or Record(created_at=now()), None
            self._is_on_disk = is_good and found is not None
        except CorruptRecordError as e:  # the sandbox can still be destroyed
            self.value, self._damage = Record(created_at=now()), e

    def check_readable(self) -> None:
        """Raises CorruptRecordError if the record could not be read."""
        if self._damage is not None:
            raise self._damage

    @property
    def exists(self) -> bool:
        """True if this node has a record of the sandbox, readable or not."""
        return self._twin.exists

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The restored directories, outer ones before those inside them."""
        return tuple(sorted(self.value.entries, key=lambda entry: entry.dir))

    @property
    def missing(self) -> list[RecoveryItem]:
        """The directories that still have to be recovered."""
        return self.value.recovery.missing if self.value.recovery else []

    def forget(self) -> None:
        """Begins with an empty record, after the sandbox's files were removed."""
        self.value, self._damage, self._is_on_disk = Record(created_at=now()), None, False

    def complete(self) -> None:
        """Writes the record unless both of its copies on the disk are good."""
        if not self._is_on_disk:
            self._save(self.value)

    def begin_recovery(self, created_at: datetime, recovery: RecoveryPlan) -> None:
        """Replaces the record by that of a recovery that begins."""
        self._save(Record(created_at=created_at, recovery=recovery))

    def note_failure(self, wanted: RecoveryItem, error: str) -> None:
        """Records the error that kept a directory from being recovered; it stays missing."""
        assert self.value.recovery is not None
        recovery = self.value.recovery.failed(wanted.dir, error)
        if recovery != self.value.recovery:
            self._save(self.value.model_copy(update={"recovery": recovery}))

    def note_driver(self, driver: Driver, layers: Collection[str]) -> None:
        """Records the driver with which these layers are mounted now."""
        entries = tuple(
            entry.model_copy(update={"driver": driver}) if entry.layer in layers else entry
            for entry in self.value.entries
        )
        if entries != self.value.entries:
            self._save(self.value.model_copy(update={"entries": entries}))

    def commit(self, entry: Entry, replaced: Collection[Entry], settled: Mapping[str, str | None]) -> None:
        """Records a restored directory in place of those that it replaces: the commit point of a restore.

        `settled` has the missing directories that the restore settles, each with its error if it is forgotten.
        """
        kept = tuple(old for old in self.value.entries if not (old.lies_in(entry.dir) or old in replaced))
        recovery = self.value.recovery
        for directory, error in settled.items():
            assert recovery is not None
            recovery = recovery.settled(directory, error=error)
        self._save(self.value.model_copy(update={"entries": (*kept, entry), "recovery": recovery}))

    def forget_missing(
        self, missing: Sequence[RecoveryItem], *, unmounted: Entry | None = None, error: str = ""
    ) -> list[RecoveryItem]:
        """Forgets missing directories, and an overlay that cannot be mounted for `error`: all or none.

        Returns the forgotten directories; the record keeps the error of each.
        """
        if not missing and unmounted is None:
            return []
        plan, entries = self.value.recovery or RecoveryPlan(at=now()), self.value.entries
        for wanted in missing:
            plan = plan.settled(wanted.dir, error=wanted.kept_away_by)
        if unmounted is not None:
            plan = plan.with_item(unmounted.missing_for(error)).settled(unmounted.dir, error=error)
            entries = tuple(entry for entry in entries if entry != unmounted)
        self._save(self.value.model_copy(update={"entries": entries, "recovery": plan}))
        dirs = {wanted.dir for wanted in missing} | ({unmounted.dir} if unmounted is not None else set())
        return [row for row in plan.directories if row.dir in dirs]

    def _save(self, record: Record) -> None:
        """Writes the record, whole or not at all. Once the file has its name, nothing here can fail."""
        self._twin.write(record.model_dump_json(exclude_none=True))
        self.value, self._is_on_disk = record, True
