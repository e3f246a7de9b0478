"""The replacement of a damaged state document, made from the node's record and the sandbox's backups.

The node's record determines where the files are and which directories are restored. The checkpoints follow from the
record and from the sandbox's signed backups. Labels, earlier events and the outcome of an earlier recovery are lost;
the damaged document is kept aside, for a person who wants to look for them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

from actors.state.changes import checkpoint_in, latest_entries, restored_in
from actors.state.document import STATE_REPLACED, Change, NodeRef, happened, with_backup, with_checkpoint
from actors.state.node_record import Entry, Record
from storage.catalog import BackupCatalog
from storage.metadata import BackupRecord, SandboxState


def remade_state(catalog: BackupCatalog, tenant: str, sandbox: str, place: NodeRef, record: Record) -> SandboxState:
    """Makes the state of a sandbox whose files are on this node, from its `record` there.

    Its epoch is greater than any that the damaged state can have had, so an earlier actor finds itself replaced.

    Raises:
        StorageError: the sandbox's backups could not be listed.
    """
    # The digests of the parts can take a megabyte for each backup, and are not needed here.
    backups = [
        backup.model_copy(update={"parts": None, "layers": None})
        for backup in catalog.all_records(tenant, sandbox)
        if not catalog.is_expired(backup)
    ]
    state = SandboxState(
        id=sandbox,
        tenant=tenant,
        created_at=record.created_at,
        epoch=int(time.time()),
        node=place.identity,
        cluster_node=place.cluster_node,
        restored=restored_in(record),
        sleep_backups=[backup.id for backup in backups if backup.of_sleep],
    )
    for _, change in sorted(_changes(backups, latest_entries(record)), key=lambda pair: pair[0]):
        state = change(state)
    return happened(state.model_copy(update={"events": []}), STATE_REPLACED, node=place.identity)


def _changes(backups: Sequence[BackupRecord], restored: Sequence[Entry]) -> list[tuple[datetime, Change]]:
    def backed_up(backup: BackupRecord) -> Change:
        return lambda state: with_backup(state, backup)

    def was_restored(entry: Entry) -> Change:
        return lambda state: with_checkpoint(state, checkpoint_in(entry))

    return [
        *((backup.created_at, backed_up(backup)) for backup in backups),
        *((entry.restored_at, was_restored(entry)) for entry in restored),
    ]
