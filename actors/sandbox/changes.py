"""The changes in a sandbox's directory since a backup: a walk of the directory, compared with the backup's listing."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from actors.errors import InvalidRequestError
from actors.faults import reading
from actors.models import ChangesPage, LiveChangesOptions
from actors.node.errors import TreeError
from actors.node.live_entries import LiveEntry, live_entries
from actors.node.tree import Tree
from actors.sandbox.residency import Residency
from actors.sandbox.transfers import translated
from actors.sandbox.tree_lock import TreeLock
from actors.state.contents import changes_page
from storage.catalog import BackupCatalog
from storage.contents import open_contents, record_of
from storage.listing import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveChanges:
    """Compares a directory of one sandbox with backups of its tenant. Commands go on meanwhile."""

    tenant: str
    catalog: BackupCatalog
    residency: Residency
    tree: Tree
    tree_lock: TreeLock
    depth: int

    def page(self, wanted: LiveChangesOptions) -> ChangesPage:
        """See `SandboxCalls.changes_since`. Wakes the sandbox."""
        with reading("such backup"):
            record = record_of(self.catalog, self.tenant, wanted.backup_id)
            opened = open_contents(self.catalog.store, record, hasty=True)
        self.residency.wake()
        directory = wanted.dir or record.dir
        with self.tree_lock.shared(), translated(directory), self.tree.directory(directory) as fd:
            self.tree.canonical(fd)
            with closing(_Directory(fd, self.depth)) as live:
                try:
                    with reading("such backup"):
                        return changes_page(opened.contents, live, wanted, partial=bool(record.partial))
                except TreeError as e:
                    raise InvalidRequestError(f"The directory cannot be compared: {e.message}") from None


class _Directory:
    """The contents of an open directory. They are scanned once, always to the end, with all that is below."""

    def __init__(self, fd: int, depth: int) -> None:
        self._fd = fd
        self._depth = depth
        self._walk: Generator[LiveEntry] | None = None

    def scan(self, start: bytes, end: bytes | None, *, deep: bool) -> Iterator[Entry]:
        """See `storage.listing.Contents`."""
        self._walk = live_entries(self._fd, start=start, depth=self._depth)
        return (Entry(*found) for found in self._walk)

    def close(self) -> None:
        """Closes the directories that a walk has open: they would keep a file system from being unmounted."""
        if self._walk is not None:
            self._walk.close()
