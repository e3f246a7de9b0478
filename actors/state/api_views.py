"""The API's views of a sandbox's documents: models made from the rows in the bucket."""

from __future__ import annotations

from actors.models import DirectoryStatus, RecoveredDirectory, Recovery, RestoredDirectory, RestoreMode, SandboxEvent
from storage import metadata
from storage.metadata import Event


def public_event(event: Event) -> SandboxEvent:
    """Converts one event."""
    return SandboxEvent(kind=event.kind, at=event.at, dir=event.dir, backup_id=event.backup_id, node=event.node)


def public_restored(row: metadata.RestoredDirectory) -> RestoredDirectory:
    """Converts one restored directory."""
    return RestoredDirectory(
        dir=row.dir,
        backup_id=row.backup_id,
        mode=RestoreMode(row.mode),
        driver=row.driver,
        restored_at=row.restored_at,
    )


def _status(row: metadata.RecoveredDirectory) -> DirectoryStatus:
    if row.status is not None:
        return DirectoryStatus(row.status)
    return DirectoryStatus.FORGOTTEN if row.error else DirectoryStatus.RESTORED


def public_recovery(recovery: metadata.Recovery | None) -> Recovery | None:
    """Converts a sandbox's recovery; None if the state has none."""
    if recovery is None:
        return None
    directories = [
        RecoveredDirectory(
            dir=row.dir, backup_id=row.backup_id, taken_at=row.taken_at, error=row.error, status=_status(row)
        )
        for row in recovery.directories
    ]
    return Recovery(
        at=recovery.at,
        lost_node=recovery.lost_node,
        directories=directories,
        lost=recovery.lost or [],
        told=not recovery.is_untold,
    )
