"""The commands and files of a sandbox, as its callers use them. Each call wakes the sandbox first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from actors.errors import InvalidRequestError
from actors.faults import unavailable_unless
from actors.models import ExecEvent, ExecRequest, FileEntry, FileKind, Started, writable_path
from actors.node.archiver import Archiver
from actors.node.errors import TreeError
from actors.node.tree import Tree
from actors.sandbox.commands import Commands
from actors.sandbox.mending import disturbed
from actors.sandbox.residency import Residency
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.tar_excludes import tar_excludes
from actors.sandbox.transfers import Transfers, translated
from actors.sandbox.tree_lock import TreeLock
from actors.sandbox.unsaved import UnsavedWatch

_LISTED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The calls of one sandbox's `exec`, `input`, `files` and `reads` lanes. Many run at once."""

    sandbox: str
    residency: Residency
    tree: Tree
    tree_lock: TreeLock
    commands: Commands
    transfers: Transfers
    restored: RestoredDirectories
    archiver: Archiver
    unsaved: UnsavedWatch
    pause_s: float
    """Longest time for which commands are paused."""

    def exec(self, command_id: str, request: ExecRequest) -> Iterator[Started | ExecEvent]:
        """See `SandboxCalls.exec`."""
        self.residency.wake_to_change()
        return self.unsaved.following(self.commands.run(command_id, request))

    def read_file(self, transfer_id: str, path: str) -> Iterator[bytes]:
        """See `SandboxCalls.read_file`."""
        self.residency.wake()
        return self._undisturbed(self.transfers.read(transfer_id, path))

    def _undisturbed(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield from pieces
        if self.restored.is_disturbed():
            raise disturbed()

    def open_file(self, path: str, mode: int | None) -> str:
        """Begins to write a file; returns the transfer's id."""
        self.residency.wake_to_change()
        return self.transfers.open_file(path, mode)

    def open_hydrate(self) -> str:
        """Begins to unpack a tar archive; returns the transfer's id."""
        self.residency.wake_to_change()
        return self.transfers.open_hydrate()

    def send(self, transfer_id: str, data: bytes) -> None:
        """Hands bytes to a transfer."""
        self.transfers.send(transfer_id, data)

    def commit(self, transfer_id: str) -> None:
        """Completes an upload: makes it visible."""
        self.transfers.commit(transfer_id)
        self.unsaved.look_soon()

    def abort(self, transfer_id: str) -> None:
        """Ends a transfer and discards what is not visible yet."""
        self.transfers.abort(transfer_id)

    def persist(self, command_id: str, excludes: Sequence[str] = ()) -> Iterator[bytes]:
        """See `SandboxCalls.persist`."""
        self.residency.wake()
        left_out = self._left_out("/workspace", excludes) if excludes else ()
        return self.transfers.persist(command_id, tar_excludes(left_out))

    def _left_out(self, directory: str, excludes: Sequence[str]) -> list[bytes]:
        """The paths that the patterns exclude. Commands are paused meanwhile, as for a backup."""
        with (
            unavailable_unless(self.sandbox, "paused", outcome="not_executed"),
            self.tree_lock.alone(),
            self.commands.paused(),
            translated(directory),
        ):
            try:
                return self.archiver.left_out(directory, excludes, timeout_s=self.pause_s)
            except TreeError as e:
                raise InvalidRequestError(f"The excludes cannot be applied: {e.message}") from None

    def delete_file(self, path: str) -> None:
        """See `SandboxCalls.delete_file`."""
        self.residency.wake_to_change()
        inside = writable_path(path)
        with self.tree_lock.shared(), translated(inside):
            self.tree.remove(inside)
        self.unsaved.look_soon()

    def list_files(self, path: str) -> list[FileEntry]:
        """See `SandboxCalls.list_files`."""
        self.residency.wake()
        inside = writable_path(path)
        with self.tree_lock.shared(), translated(inside):
            return [
                FileEntry(
                    name=row.name,
                    kind=FileKind(row.kind),
                    size_bytes=row.size_bytes,
                    mode=row.mode,
                    modified_at=datetime.fromtimestamp(row.modified_s, UTC),
                )
                for row in self.tree.entries(inside, limit=_LISTED)
            ]

    def stop(self, name: str) -> bool:
        """Stops one command or transfer. Returns False if there is none of this name."""
        return self.commands.stop(name) or self.transfers.abort(name)
