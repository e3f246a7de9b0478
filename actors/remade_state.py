"""A sandbox's state made anew, in the place of one in the bucket that is damaged.

The node's record is the truth for where the files are and what is restored where. What every directory is recovered
from follows from it and from the sandbox's backups, which are signed. Labels, earlier events and how an earlier loss
ended are gone; the damaged document is kept aside, for a person who wants to look for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from actors.durable_state import STATE_REPLACED, Place, happened, with_backup, with_checkpoint
from storage.catalog import BackupCatalog
from storage.metadata import BackupRecord, Checkpoint, RestoredDirectory, SandboxState


def remade_state(
    catalog: BackupCatalog,
    tenant: str,
    sandbox: str,
    place: Place,
    *,
    created_at: datetime,
    restored: Sequence[tuple[RestoredDirectory, Checkpoint]],
) -> SandboxState:
    """The state of a sandbox whose files are on this node.

    Its epoch is greater than any that the damaged one can have had, so that an earlier actor finds itself replaced.

    Args:
        restored: what the node's record says is restored, and what it is recovered from.

    Raises:
        StorageError: the bucket does not say which backups there are.
    """
    backups = [record for record in catalog.all_records(tenant, sandbox) if not catalog.is_expired(record)]
    state = SandboxState(
        id=sandbox,
        tenant=tenant,
        created_at=created_at,
        epoch=int(time.time()),
        node=place.identity,
        cluster_node=place.cluster_node,
        restored=[row for row, _ in restored],
        sleep_backups=[record.id for record in backups if record.of_sleep],
    )
    for _, change in sorted(_changes(backups, restored), key=lambda pair: pair[0]):
        state = change(state)
    return happened(state.model_copy(update={"events": []}), STATE_REPLACED, node=place.identity)


def _changes(
    backups: Sequence[BackupRecord], restored: Sequence[tuple[RestoredDirectory, Checkpoint]]
) -> list[tuple[datetime, Callable[[SandboxState], SandboxState]]]:
    def backed_up(record: BackupRecord) -> Callable[[SandboxState], SandboxState]:
        return lambda state: with_backup(state, record)

    def was_restored(checkpoint: Checkpoint) -> Callable[[SandboxState], SandboxState]:
        return lambda state: with_checkpoint(state, checkpoint)

    return [
        *((record.created_at, backed_up(record)) for record in backups),
        *((row.restored_at, was_restored(checkpoint)) for row, checkpoint in restored),
    ]
