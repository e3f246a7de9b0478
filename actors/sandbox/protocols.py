"""Makes the objects that create, restore and fetch a sandbox's backups, each with the parts that it needs.

Their modules are imported at the first use, since commands and file transfers do not need them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.bucket import configured
from actors.config import SandboxConfig
from actors.metrics import Meter
from actors.sandbox.parts import Parts
from actors.state.backup_ledger import SandboxLedger
from storage.catalog import BackupCatalog

if TYPE_CHECKING:
    from actors.sandbox.backup import BackupCreation
    from actors.sandbox.changes import LiveChanges
    from actors.sandbox.fetch import ArchiveFetch
    from actors.sandbox.residency import Residency
    from actors.sandbox.restore import BackupRestoration


@dataclass(frozen=True, slots=True)
class Protocols:
    """The protocols of one sandbox. Every method raises InvalidBackupConfigError while no bucket is configured."""

    tenant: str
    sandbox: str
    config: SandboxConfig
    catalog: BackupCatalog | None
    parts: Parts
    ledger: SandboxLedger
    meter: Meter

    def check_configured(self) -> None:
        """Checks that a bucket is configured."""
        configured(self.catalog, self.config)

    def creation(
        self, *, of_sleep: bool = False, paused: Callable[[], AbstractContextManager[None]] | None = None
    ) -> BackupCreation:
        """The protocol of creating a backup. `paused` pauses what could change the tree; by default everything."""
        from actors.sandbox.backup import BackupCreation
        from actors.sandbox.increments import Increments

        return BackupCreation(
            tenant=self.tenant,
            sandbox=self.sandbox,
            uid=self.config.node.sandbox_uid,
            catalog=configured(self.catalog, self.config),
            archiver=self.parts.archiver,
            cache=self.parts.cache,
            spool=self.parts.spool,
            transfer=self.config.transfer,
            pause_s=self.config.backup.pause_s,
            ledger=self.ledger,
            paused=paused or self.parts.quiescence.paused,
            of_sleep=of_sleep,
            meter=self.meter,
            increments=Increments(
                self.tenant,
                self.config.node.sandbox_uid,
                configured(self.catalog, self.config),
                self.parts.restored,
                self.config.backup,
                self.parts.spool.parent / "fingerprints",
            ),
        )

    def restoration(self, *, is_held: bool = False) -> BackupRestoration:
        """The protocol of restoring a backup. It stops what runs in the sandbox before the swap.

        `is_held` means that the caller holds the tree lock, and that nothing runs because parts of the tree are lost.
        """
        from actors.sandbox.restore import BackupRestoration

        return BackupRestoration(
            tenant=self.tenant,
            sandbox=self.sandbox,
            catalog=configured(self.catalog, self.config),
            archiver=self.parts.archiver,
            fetch=self.fetch(),
            verified=self.parts.verified,
            tree=self.parts.tree,
            layers=self.parts.layers,
            restored=self.parts.restored,
            spool=self.parts.spool,
            stopped=self.parts.tree_lock.repairing if is_held else self.parts.quiescence.stopped,
            restores_unsigned=self.config.restore_unsigned,
        )

    def changes(self, residency: Residency) -> LiveChanges:
        """The comparison of the sandbox's directories with backups; `residency` wakes the sandbox for it."""
        from actors.sandbox.changes import LiveChanges

        return LiveChanges(
            tenant=self.tenant,
            catalog=configured(self.catalog, self.config),
            residency=residency,
            tree=self.parts.tree,
            tree_lock=self.parts.tree_lock,
            depth=self.config.backup.depth,
        )

    def fetch(self) -> ArchiveFetch:
        """The protocol of fetching an archive from the bucket."""
        from actors.sandbox.fetch import ArchiveFetch

        return ArchiveFetch(
            uid=self.config.node.sandbox_uid,
            catalog=configured(self.catalog, self.config),
            archiver=self.parts.archiver,
            cache=self.parts.cache,
            transfer=self.config.transfer,
            meter=self.meter,
        )
