"""Transfers of files and tar archives into and out of a sandbox, piece by piece.

A transfer lasts over many calls, and a restore must not wait for a slow client. So a restore ends every transfer, which
closes every descriptor that would keep the old directory busy.
"""

from __future__ import annotations

import errno
import math
import os
import re
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from actors.errors import (
    ExecError,
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
from actors.node.process import kill_group, printable
from actors.node.tree import DEAD_MOUNT, Tree
from actors.sandbox.commands import Commands
from actors.sandbox.tar_excludes import TarExcludes
from actors.sandbox.tree_lock import TreeLock

_ABANDONED_AFTER_S = 600.0
_XATTRS = ("--xattrs", "--xattrs-include=user.*")
_TAR_IN = ("tar", "--extract", "--file=-", "--no-same-owner", "--delay-directory-restore", *_XATTRS, "--block-number",
           "--warning=no-timestamp", "--warning=no-unknown-keyword")  # fmt: skip
_TAR_LOOK = (*_TAR_IN, "--exclude=*")
"""Reads the whole archive and unpacks nothing. Unlike --list it prints no names, which could look like an end mark."""
_END_MARK = b"** Block of NULs **"
"""Printed to stdout at an archive's end, because of --block-number. Source: GNU tar's list.c, `read_and`."""
_OURS = "--exclude=.holdfast-????????????????"
_PAX = "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"
"""Leaves out the process id, the access times and the change times, so that equal trees give equal archives."""
_TAR_OUT = ("tar", "--create", "--file=-", "--format=posix", _PAX, *_XATTRS, "--sparse", "--owner=1000",
            "--group=1000", "--numeric-owner", "--warning=no-file-ignored", _OURS)  # fmt: skip
_NO_ATTRIBUTES = re.compile(rb": Warning: Cannot \w*listxattr\w*: Operation not supported$")
"""tar's warning for each file of a restored archive that holds no attributes: its file system cannot list them."""
_OF_A_LIVE_TREE = (b": file changed as we read it", b": File removed before we read it")
_CUT_OFF = re.compile(rb"^tar: Unexpected EOF in archive$", re.MULTILINE)
_DISK_FULL = re.compile(rb": (No space left on device|Disk quota exceeded|Wrote only \d+ of \d+ bytes)$", re.MULTILINE)
_MAX_COMPLAINTS_BYTES = 65_536
_TAR_DIFFERED = 1
"""tar's exit status when some files changed while they were read. Source: GNU tar manual, "Return codes"."""


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

    def __init__(self, tree: Tree, commands: Commands, gate: TreeLock, *, spool: Path) -> None:
        """`gate` is the tree lock; `spool` a folder on the node, made when needed, for uploads not yet in the tree."""
        self._tree = tree
        self._commands = commands
        self._gate = gate
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
        with self._gate.shared(), translated(inside), self._tree.regular_file(inside) as fd:
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
        with self._gate.shared(), translated(inside):
            return self._register(self._tree.new_file(inside, mode)).id

    def open_hydrate(self) -> str:
        """Begins to unpack a tar archive into /workspace; returns the transfer's id."""
        self._end_abandoned()
        return self._register(_TarSink(self._commands, self._spool)).id

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
        argv = (*_TAR_OUT, *excludes.options, ".")
        stdin = subprocess.DEVNULL if excludes.lines is None else subprocess.PIPE
        with self._commands.tool(command_id, argv, identity=Identity.READER, stdin=stdin) as tool:
            tar = tool.process
            assert tar.stdout is not None and tar.stderr is not None
            complaints = _Complaints(tar)
            if tar.stdin is not None and excludes.lines is not None:  # tar reads all of it before it writes anything
                with suppress(BrokenPipeError):  # tar has ended, and says why on stderr
                    tar.stdin.write(excludes.lines)
                    tar.stdin.close()
            while data := tar.stdout.read(TRANSFER_BYTES):
                yield data
            status = tar.wait()
            complete = not complaints.text() if status == 0 else status == _TAR_DIFFERED and complaints.changed_only()
            if not complete:
                tool.check_undisturbed(complaints.said())
                if complaints.of_a_dead_mount():
                    raise _mount_lost()
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
            with self._gate.shared(), found.lock, translated(""):
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


class _TarSink:
    """A tar archive that is being uploaded. It is unpacked only after all of it has arrived and is found whole.

    A first tar checks the bytes as they arrive. They are kept in an unnamed file on the node, from which a second tar
    unpacks them.
    """

    def __init__(self, commands: Commands, spool: Path) -> None:
        self._commands = commands
        spool.mkdir(exist_ok=True)
        self._kept = tempfile.TemporaryFile(dir=spool, buffering=0)  # noqa: SIM115 (closed by `abort` and `finish`)
        try:
            self._tar = _Tar(commands, _TAR_LOOK, subprocess.PIPE)
        except BaseException:
            self._kept.close()
            raise

    def write(self, data: bytes) -> None:
        if not self._tar.take(data):
            return
        view = memoryview(data)
        try:
            while view:
                view = view[self._kept.write(view) :]
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpaceError("The disk is full.") from None
            raise

    def commit(self) -> None:
        self._tar.end()
        self._kept.seek(0)
        self._tar = _Tar(self._commands, _TAR_IN, self._kept.fileno())
        self._tar.is_ending = True

    def finish(self) -> None:
        try:
            self._tar.end()
        finally:
            self._kept.close()

    def abort(self) -> None:
        self._tar.abort()
        self._kept.close()


class _Tar:
    """A tar process in the sandbox. An archive is accepted if tar accepts it and has seen an end mark.

    tar by itself accepts an archive that was cut off between two members. It ends after the archive's end mark, and
    does not read what may follow, such as padding.
    """

    def __init__(self, commands: Commands, argv: Sequence[str], stdin: int) -> None:
        self._has_read_all = False
        self.is_ending = False
        """True once `end` is being called, or is about to be: then `end` cleans up, and not `abort`."""
        self._stack = ExitStack()
        self._tool = self._stack.enter_context(
            commands.tool(uuid.uuid4().hex, argv, identity=Identity.READER, stdin=stdin)
        )
        self._tar = self._tool.process
        self._complaints = _Complaints(self._tar)
        self._said = bytearray()
        self._drain = threading.Thread(target=self._read_what_it_says, daemon=True)
        self._drain.start()

    def take(self, data: bytes) -> bool:
        """Feeds the next bytes to tar. Returns False if tar has read the whole archive already."""
        assert self._tar.stdin is not None
        if not self._has_read_all:
            try:
                self._tar.stdin.write(data)
            except BrokenPipeError:
                self._check_verdict()
                self._has_read_all = True
                return True  # some of these bytes may belong to the archive
        return not self._has_read_all

    def end(self) -> None:
        """Waits until tar ends. Raises the error for which the archive is refused, if it is."""
        self.is_ending = True
        if self._tar.stdin is not None:
            with suppress(BrokenPipeError):
                self._tar.stdin.close()
        try:
            self._check_verdict()
        except BaseException:
            with suppress(ExecError, SandboxUnavailableError):
                self._stack.close()
            raise
        self._stack.close()

    def abort(self) -> None:
        """Kills tar. Repeatable; may be called while another thread is in `end`."""
        kill_group(self._tar)
        if not self.is_ending:
            with suppress(ExecError, SandboxUnavailableError):
                self._stack.close()

    def _check_verdict(self) -> None:
        if self._tar.wait() != 0 or self._complaints.of_attributes():
            raise self._refused()
        self._drain.join(5)
        if _END_MARK not in self._said:
            raise _cut_off("")

    def _refused(self) -> HoldfastError:
        try:
            self._tool.check_undisturbed(self._complaints.said())
        except (ExecError, SandboxUnavailableError) as e:
            return e
        said = self._complaints.text()
        if self._complaints.of_attributes():
            return InvalidRequestError("The archive holds attributes that cannot be set here.", context={"tar": said})
        if self._complaints.say(_DISK_FULL):
            return NoSpaceError("The disk is full.")
        if self._complaints.of_a_dead_mount():
            return _mount_lost()
        if self._complaints.say(_CUT_OFF):
            return _cut_off(said)
        return InvalidRequestError("The body is not a tar archive that can be unpacked.", context={"tar": said})

    def _read_what_it_says(self) -> None:
        assert self._tar.stdout is not None
        for line in self._tar.stdout:
            self._said += line[: max(0, _MAX_COMPLAINTS_BYTES - len(self._said))]


class _Complaints:
    """The stderr of a tar process, read in a thread of its own so that tar never blocks on it."""

    def __init__(self, tar: subprocess.Popen[bytes]) -> None:
        self._said = bytearray()
        self._pipe = tar.stderr
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def said(self) -> bytes:
        self._reader.join(5)
        return bytes(self._said)

    def text(self) -> str:
        return printable(self.said())

    def changed_only(self) -> bool:
        """True if tar's only complaints are files that changed or disappeared while it read them, as in a live tree."""
        lines = self.said().splitlines()
        return bool(lines) and all(line.endswith(_OF_A_LIVE_TREE) for line in lines)

    def say(self, sentence: re.Pattern[bytes]) -> bool:
        """True if tar's complaints contain this sentence."""
        return sentence.search(self.said()) is not None

    def of_attributes(self) -> bool:
        """True if tar could not set an attribute, in which case it still exits with 0; or if its output was cut off."""
        self._reader.join(5)
        return b"Cannot set '" in self._said or len(self._said) == _MAX_COMPLAINTS_BYTES

    def of_a_dead_mount(self) -> bool:
        """True if tar complains of a file system that does not answer."""
        self._reader.join(5)
        return any(os.strerror(number).encode() in self._said for number in DEAD_MOUNT)

    def _read(self) -> None:
        assert self._pipe is not None
        for line in self._pipe:
            if not _NO_ATTRIBUTES.search(line):
                self._said += line[: max(0, _MAX_COMPLAINTS_BYTES - len(self._said))]


def _cut_off(said: str) -> InvalidRequestError:
    return InvalidRequestError(
        "The archive is cut off: it has no end mark, or ends within a member.",
        hint="Send the whole archive again. Nothing of it was unpacked.",
        context={"tar": said} if said else {},
    )


def _mount_lost() -> MountLostError:
    return MountLostError("A file system under /workspace does not answer; it is being mounted anew.")


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
