"""The tar commands that pack and unpack a sandbox's files, and the meaning of what tar prints.

They run in a box, like the sandbox's commands, and are paused and stopped with them.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from actors.errors import (
    ExecError,
    HoldfastError,
    InvalidRequestError,
    MountLostError,
    NoSpaceError,
    SandboxUnavailableError,
)
from actors.node.bubblewrap import Identity
from actors.node.errors import is_full
from actors.node.process import kill_group, printable
from actors.node.tree import DEAD_MOUNT
from actors.sandbox.commands import Commands, RunningTool

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
PACKING = ("tar", "--create", "--file=-", "--format=posix", _PAX, *_XATTRS, "--sparse", "--owner=1000",
            "--group=1000", "--numeric-owner", "--warning=no-file-ignored", _OURS)  # fmt: skip
_HARMLESS = re.compile(
    rb": Warning: Cannot (\w*listxattr\w*: Operation not supported|\w*xattr\w*: No such file or directory)$"
)
"""Warnings about extended attributes: the file system has none, or the file was deleted before they were listed."""
_OF_A_LIVE_TREE = (b": file changed as we read it", b": File removed before we read it")
_CUT_OFF = re.compile(rb"^tar: Unexpected EOF in archive$", re.MULTILINE)
_DISK_FULL = re.compile(rb": (No space left on device|Disk quota exceeded|Wrote only \d+ of \d+ bytes)$", re.MULTILINE)
_MAX_COMPLAINTS_BYTES = 65_536
DIFFERED = 1
"""tar's exit status when some files changed while they were read. Source: GNU tar manual, "Return codes"."""


class TarSink:
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
            if is_full(e):
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
        self._complaints = Complaints(self._tool)
        self._said = bytearray()
        self._drain = self._tool.beside(self._read_what_it_says)

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
            return mount_lost()
        if self._complaints.say(_CUT_OFF):
            return _cut_off(said)
        return InvalidRequestError("The body is not a tar archive that can be unpacked.", context={"tar": said})

    def _read_what_it_says(self) -> None:
        assert self._tar.stdout is not None
        for line in self._tar.stdout:
            self._said += line[: max(0, _MAX_COMPLAINTS_BYTES - len(self._said))]


class Complaints:
    """The stderr of a tar process, read in a thread of its own so that tar never blocks on it."""

    def __init__(self, tar: RunningTool) -> None:
        self._said = bytearray()
        self._pipe = tar.process.stderr
        self._reader = tar.beside(self._read)

    def said(self) -> bytes:
        """The output, once tar has ended."""
        self._reader.join(5)
        return bytes(self._said)

    def text(self) -> str:
        """The end of the output as one safe line."""
        return printable(self.said())

    def changed_only(self) -> bool:
        """True if tar's only complaints are files that changed or disappeared while it read them, as in a live tree."""
        lines = self.said().splitlines()
        return bool(lines) and all(line.endswith(_OF_A_LIVE_TREE) for line in lines)

    def say(self, sentence: re.Pattern[bytes]) -> bool:
        """True if tar's complaints contain this sentence."""
        return sentence.search(self.said()) is not None

    def of_attributes(self) -> bool:
        """True if tar could not set an attribute (it still exits with 0), or if its output was too long to keep."""
        self._reader.join(5)
        return b"Cannot set '" in self._said or len(self._said) == _MAX_COMPLAINTS_BYTES

    def of_a_dead_mount(self) -> bool:
        """True if tar complains of a file system that does not answer."""
        self._reader.join(5)
        return any(os.strerror(number).encode() in self._said for number in DEAD_MOUNT)

    def _read(self) -> None:
        assert self._pipe is not None
        for line in self._pipe:
            if not _HARMLESS.search(line):
                self._said += line[: max(0, _MAX_COMPLAINTS_BYTES - len(self._said))]


def _cut_off(said: str) -> InvalidRequestError:
    return InvalidRequestError(
        "The archive is cut off: it has no end mark, or ends within a member.",
        hint="Send the whole archive again. Nothing of it was unpacked.",
        context={"tar": said} if said else {},
    )


def mount_lost() -> MountLostError:
    """The error of a transfer that meets a mount which does not answer."""
    return MountLostError("A file system under /workspace does not answer; it is being mounted anew.")
