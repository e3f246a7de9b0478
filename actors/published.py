"""What the bucket knows of a sandbox, as its owner is told: stored documents made into models that travel."""

from __future__ import annotations

from actors.models import RecoveredDirectory, Recovery, RestoredDirectory, RestoreMode, SandboxEvent
from storage import metadata
from storage.metadata import Event, SandboxState


def public_event(event: Event) -> SandboxEvent:
    """One event."""
    return SandboxEvent(kind=event.kind, at=event.at, dir=event.dir, backup_id=event.backup_id, node=event.node)


def public_restored(row: metadata.RestoredDirectory) -> RestoredDirectory:
    """A directory that came from a backup."""
    return RestoredDirectory(
        dir=row.dir,
        backup_id=row.backup_id,
        mode=RestoreMode(row.mode),
        driver=row.driver,
        restored_at=row.restored_at,
    )


def public_recovery(state: SandboxState) -> Recovery | None:
    """How the sandbox came back after its node was lost; None if it never had to."""
    recovery = state.recovery
    if recovery is None:
        return None
    directories = [
        RecoveredDirectory(dir=row.dir, backup_id=row.backup_id, taken_at=row.taken_at, error=row.error)
        for row in recovery.directories
    ]
    return Recovery(
        at=recovery.at,
        lost_node=recovery.lost_node,
        directories=directories,
        lost=recovery.lost or [],
        told=not recovery.is_untold,
    )
