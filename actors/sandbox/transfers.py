"""Transfers of files and tar archives into and out of a sandbox, piece by piece.

A transfer lasts over many calls, and a restore must not wait for a slow client. So a restore ends every transfer, which
closes every descriptor that would keep the old directory busy.
"""

from __future__ import annotations

import math
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from actors.errors import (
    ExecStoppedError,
    FileNotFoundInSandboxError,
    HoldfastError,
    InvalidRequestError,
    MountLostError,
    NoSpaceError,
    NotARegularFileError,
    PathForbiddenError,
    SandboxUnavailableError,
)
from actors.faults import reason_of
from actors.logs import log
from actors.models import TRANSFER_BYTES, writable_path
from actors.node.bubblewrap import Identity
from actors.node.errors import (
    MountError,
    NodeError,
    NoSpaceLeftError,
    PathError,
    PathMissingError,
    PathTypeError,
)
from actors.node.tree import Tree
from actors.sandbox.commands import Commands
from actors.sandbox.tar_excludes import TarExcludes
from actors.sandbox.tar_process import DIFFERED, PACKING, Complaints, TarSink, mount_lost
from actors.sandbox.tree_lock import TreeLock

_ABANDONED_AFTER_S = 600.0


class Sink(Protocol):
    """The target of an upload. A file becomes visible whole or not at all.

    A tar archive is unpacked once all of it has arrived, and becomes visible file by file.
    """

    def write(self, data: bytes) -> None:
        """Accepts the next bytes."""

    def commit(self) -> None:
        """Makes the upload visible, or begins to."""

    def finish(self) -> None:
        """Returns when the whole upload is visible. It may take long, so no lock is held, and `abort` may be called."""

    def abort(self) -> None:
        """Discards everything that is not visible yet. Repeatable."""


@dataclass(slots=True)
class _Open:
    id: str
    sink: Sink
    lock: threading.Lock = field(default_factory=threading.Lock)
    used_at: float = field(default_factory=time.monotonic)
    ended: bool = False
    error: HoldfastError | None = None
    """The error with which the transfer was ended, if not on request or by a restore."""


class Transfers:
    """The open transfers of one sandbox."""

    def __init__(self, tree: Tree, commands: Commands, tree_lock: TreeLock, *, spool: Path) -> None:
        """`spool` is a folder on the node, made when needed, for uploads not yet in the tree."""
        self._tree = tree
        self._commands = commands
        self._tree_lock = tree_lock
        self._spool = spool
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()

    @property
    def has_uploads(self) -> bool:
        """True if a transfer is open, other than abandoned uploads."""
        self._end_abandoned()
        return bool(self._open)

    def read(self, transfer_id: str, path: str) -> Iterator[bytes]:
        """The bytes of a regular file. Raises FileNotFoundInSandboxError and the other errors of paths."""
        inside = writable_path(path)
        with self._tree_lock.shared(), translated(inside), self._tree.regular_file(inside) as fd:
            transfer = self._register(reading := _Reading(os.dup(fd)), transfer_id)
        try:
            while True:
                with transfer.lock:
                    if transfer.ended:
                        raise transfer.error or ExecStoppedError("The reading was stopped, on request or by a restore.")
                    with translated(inside):
                        data = reading.read()
                if not data:
                    return
                yield data
        finally:
            self.abort(transfer_id)

    def open_file(self, path: str, mode: int | None) -> str:
        """Begins to write a file; returns the transfer's id."""
        inside = writable_path(path)
        self._end_abandoned()
        with self._tree_lock.shared(), translated(inside):
            return self._register(self._tree.new_file(inside, mode)).id

    def open_hydrate(self) -> str:
        """Begins to unpack a tar archive into /workspace; returns the transfer's id."""
        self._end_abandoned()
        return self._register(TarSink(self._commands, self._spool)).id

    def send(self, transfer_id: str, data: bytes) -> None:
        """Hands the next bytes to a transfer."""
        self._with(transfer_id, lambda sink: sink.write(data))

    def commit(self, transfer_id: str) -> None:
        """Completes an upload: makes it visible."""
        found = self._with(transfer_id, lambda sink: sink.commit())
        found.used_at = math.inf
        try:
            with translated(""):
                found.sink.finish()
        except HoldfastError as e:
            raise (self._end_of(found) if found.ended else e) from None
        finally:
            with self._lock:
                self._open.pop(transfer_id, None)

    def abort(self, transfer_id: str) -> bool:
        """Ends a transfer and discards what is not visible yet. Returns False if there is no such transfer."""
        with self._lock:
            found = self._open.pop(transfer_id, None)
        if found is not None:
            self._end(found)
        return found is not None

    def abort_all(self, error: HoldfastError | None = None) -> None:
        """Ends every transfer, reads included; returns when none holds a file open.

        Their callers get `error`; None stands for a request or a restore.
        """
        with self._lock:
            everything = list(self._open.values())
            self._open.clear()
        for transfer in everything:
            transfer.error = error
            self._end(transfer)

    def persist(self, command_id: str, excludes: TarExcludes) -> Iterator[bytes]:
        """A tar archive of /workspace."""
        argv = (*PACKING, *excludes.options, ".")
        stdin = subprocess.DEVNULL if excludes.lines is None else subprocess.PIPE
        with self._commands.tool(command_id, argv, identity=Identity.READER, stdin=stdin) as tool:
            tar = tool.process
            assert tar.stdout is not None and tar.stderr is not None
            complaints = Complaints(tool)
            if tar.stdin is not None and excludes.lines is not None:  # tar reads all of it before it writes anything
                with suppress(BrokenPipeError):  # tar has ended, and says why on stderr
                    tar.stdin.write(excludes.lines)
                    tar.stdin.close()
            while data := tar.stdout.read(TRANSFER_BYTES):
                yield data
            status = tar.wait()
            complete = not complaints.text() if status == 0 else status == DIFFERED and complaints.changed_only()
            if not complete:
                tool.check_undisturbed(complaints.said())
                if complaints.of_a_dead_mount():
                    raise mount_lost()
                raise SandboxUnavailableError(
                    "The archive is not whole: files could not be read, or became shorter meanwhile.",
                    hint="Try again while nothing writes to /workspace.",
                    context={"outcome": "not_executed", "reason": "TREE_REFUSED", "tar": complaints.text()},
                )

    def _with(self, transfer_id: str, act: Callable[[Sink], None]) -> _Open:
        found = self._open.get(transfer_id)
        if found is None:
            raise ExecStoppedError("The transfer has ended: a restore or a long silence stopped it.")
        try:
            with self._tree_lock.shared(), found.lock, translated(""):
                if found.ended:
                    raise self._end_of(found)
                found.used_at = time.monotonic()
                act(found.sink)
        except SandboxUnavailableError:  # the tree is not whole, perhaps because of what ended the transfer
            error = self._end_of(found) if found.ended else None
            self.abort(transfer_id)
            if error is not None:
                raise error from None
            raise
        except BaseException:
            self.abort(transfer_id)
            raise
        return found

    @staticmethod
    def _end_of(transfer: _Open) -> HoldfastError:
        return transfer.error or ExecStoppedError("A restore stopped the transfer.")

    def _register(self, sink: Sink, transfer_id: str | None = None) -> _Open:
        transfer = _Open(transfer_id or uuid.uuid4().hex, sink)
        with self._lock:
            self._open[transfer.id] = transfer
        return transfer

    def _end(self, transfer: _Open) -> None:
        with transfer.lock:
            if not transfer.ended:
                transfer.ended = True
                transfer.sink.abort()

    def _end_abandoned(self) -> None:
        limit = time.monotonic() - _ABANDONED_AFTER_S
        for transfer_id, transfer in list(self._open.items()):
            if transfer.used_at < limit and not isinstance(transfer.sink, _Reading):
                self.abort(transfer_id)


class _Reading:
    """A file that is being read. Only its descriptor has to be closed at the end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self) -> bytes:
        """The next bytes; none at the end."""
        try:
            return os.read(self.fd, TRANSFER_BYTES)
        except OSError as e:
            raise MountError(f"The file cannot be read on ({os.strerror(e.errno or 0)}).") from None

    def write(self, data: bytes) -> None:
        raise InvalidRequestError("This transfer goes the other way.")

    def commit(self) -> None:
        raise InvalidRequestError("This transfer goes the other way.")

    def finish(self) -> None:
        raise InvalidRequestError("This transfer goes the other way.")

    def abort(self) -> None:
        with suppress(OSError):  # close(2) reports a file system that does not answer; the descriptor is closed
            os.close(self.fd)


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turns the node's errors about a path of the sandbox into the errors for callers."""
    context = {"path": path} if path else {}
    try:
        yield
    except PathMissingError as e:
        raise FileNotFoundInSandboxError(e.message, context=context) from None
    except PathTypeError as e:
        raise NotARegularFileError(e.message, hint=e.hint, context=context) from None
    except NoSpaceLeftError:
        raise NoSpaceError("The disk is full.", context=context) from None
    except PathError as e:
        raise PathForbiddenError(e.message, context=context) from None
    except MountError as e:
        raise MountLostError(e.message, context=context) from None
    except (NodeError, OSError) as e:
        reason, sentence = reason_of(e)
        log.error("path_not_served", reason=reason, error=type(e).__name__, number=getattr(e, "errno", None))
        raise SandboxUnavailableError(
            f"The path could not be used: {sentence}.",
            hint="Try again.",
            context={"outcome": "unknown", "reason": reason, **context},
        ) from None
