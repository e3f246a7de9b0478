"""The API's views of a sandbox's documents: models made from the rows of the state and of the node's record."""

from __future__ import annotations

from actors.models import DirectoryStatus, RecoveredDirectory, Recovery, RestoredDirectory, SandboxEvent
from actors.state.node_record import Entry
from storage import metadata
from storage.metadata import Event


def public_event(event: Event) -> SandboxEvent:
    """Converts one event."""
    return SandboxEvent.model_validate(event, from_attributes=True)


def public_restored(row: metadata.RestoredDirectory | Entry) -> RestoredDirectory:
    """Converts one restored directory, of the state or of the node's record."""
    return RestoredDirectory.model_validate(row, from_attributes=True, strict=False)


def _public_recovered(row: metadata.RecoveredDirectory) -> RecoveredDirectory:
    if row.status is None:  # in a document of an earlier release
        status = DirectoryStatus.FORGOTTEN if row.error else DirectoryStatus.RESTORED
        row = row.model_copy(update={"status": status})
    return RecoveredDirectory.model_validate(row, from_attributes=True, strict=False)


def public_recovery(recovery: metadata.Recovery | None) -> Recovery | None:
    """Converts a sandbox's recovery; None if the state has none."""
    if recovery is None:
        return None
    return Recovery(
        at=recovery.at,
        lost_node=recovery.lost_node,
        directories=[_public_recovered(row) for row in recovery.directories],
        lost=recovery.lost or [],
        told=not recovery.is_untold,
    )
