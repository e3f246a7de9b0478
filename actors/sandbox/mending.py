"""Replaces an archive under a sandbox's layer when this node's copy of it is damaged or gone.

A damaged archive is never mounted. The good copy comes from the node's cache or the bucket. The layer keeps its upper,
so everything that the sandbox has written over the archive is there again once the layer is mounted.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from actors.background import Background
from actors.errors import BackupNotFoundError, MountLostError
from actors.faults import reason_of
from actors.logs import log
from actors.models import OperationKind
from actors.node.errors import NodeError
from actors.node.verified import Verified
from actors.sandbox.operations import Progress
from actors.sandbox.restored_directories import RestoredDirectories
from actors.state.document import happened
from actors.state.node_record import Entry
from actors.state.ownership import Ownership
from storage.errors import DocumentError, IntegrityError

if TYPE_CHECKING:
    from actors.sandbox.fetch import ArchiveFetch

DAMAGED = "archive_damaged"
"""The event of a sandbox whose directory was mounted, or was about to be mounted, from a damaged archive."""
_LOOK_S = 5.0


def disturbed() -> MountLostError:
    """The error of a caller that may have read what was never in the backup."""
    return MountLostError(
        "The archive under a restored directory was damaged on the node; it is fetched and mounted anew.",
        hint="Try again.",
        context={"reason": "DAMAGED_COPY"},
    )


class Mending:
    """Replaces damaged archives of one sandbox, while nothing is mounted from them."""

    def __init__(
        self,
        tenant: str,
        restored: RestoredDirectories,
        ownership: Ownership,
        verified: Verified,
        *,
        spool: Path,
        node: str,
        fetch: Callable[[], ArchiveFetch],
    ) -> None:
        """`node` is this node's identity. `fetch` raises InvalidBackupConfigError while no bucket is configured."""
        self._tenant = tenant
        self._restored = restored
        self._ownership = ownership
        self._verified = verified
        self._spool = spool
        self._node = node
        self._fetch = fetch

    def mend(self) -> dict[str, str]:
        """Fetches the damaged archives of restored directories anew, and records that in the sandbox's events.

        An archive that is missing in the bucket, or cannot be verified there, stays damaged: its directory cannot be
        mounted.

        Returns:
            The directories whose archives stay damaged, each with the cause, which lies in the bucket.

        Raises:
            InvalidBackupConfigError: no bucket is configured.
            StorageError, NodeError, OSError: an archive could not be fetched now.
        """
        damaged = self._restored.damaged()
        if not damaged:
            return {}
        fetch = self._fetch()
        for entry in damaged:
            self._report(entry)
        causes: dict[str, str] = {}
        for entry in damaged:
            try:
                self._replace(entry, fetch)
                log.warning("archive_replaced", dir=entry.dir, backup=entry.backup_id)
            except BackupNotFoundError as e:
                causes[entry.dir] = e.code
            except (IntegrityError, DocumentError) as e:
                causes[entry.dir], _ = reason_of(e)
            if entry.dir in causes:
                log.error("archive_not_replaced", dir=entry.dir, backup=entry.backup_id, cause=causes[entry.dir])
        return causes

    def _report(self, entry: Entry) -> None:
        dir_, backup_id, node = entry.dir, entry.backup_id, self._node
        self._ownership.report(lambda state: happened(state, DAMAGED, dir=dir_, backup_id=backup_id, node=node))

    def _replace(self, entry: Entry, fetch: ArchiveFetch) -> None:
        progress = Progress(OperationKind.RECOVER, entry.dir, lambda: datetime.now(UTC))
        work = self._spool / uuid.uuid4().hex
        work.mkdir(parents=True, mode=0o711)
        try:
            for sha256 in entry.digests:
                link = work / f"{sha256}.sqsh"
                try:
                    fetch.fetch_again(
                        self._tenant, entry.backup_id, sha256, link, progress, is_layer=entry.above is not None
                    )
                    self._restored.keep_archive(link, sha256)
                finally:
                    with contextlib.suppress(NodeError, OSError):
                        self._verified.unlink(link, sha256)
        finally:
            shutil.rmtree(work, ignore_errors=True)


class Watch:
    """A background thread that calls `look` every few seconds, until `look` returns False."""

    def __init__(self, look: Callable[[], bool]) -> None:
        self._background = Background("archive-watch", lambda: _LOOK_S if look() else None)

    def begin(self) -> None:
        """Begins to look, unless it does so already. May be called from `look`, or under a lock that `look` needs."""
        self._background.ask(after_s=_LOOK_S)
