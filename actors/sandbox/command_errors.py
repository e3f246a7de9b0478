"""The errors of commands and tools that did not begin, or did not end, made from what their box printed.

Each error says whether the caller or the node is at fault.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import MappingProxyType

from actors.errors import (
    RETRYABLE,
    FileNotFoundInSandboxError,
    HoldfastError,
    InvalidRequestError,
    MountLostError,
    PathForbiddenError,
    SandboxUnavailableError,
)
from actors.faults import reason_of
from actors.logs import log
from actors.node.boxed_tools import check_undisturbed, is_signalled
from actors.node.errors import NodeError, ToolKilledError
from actors.node.process import Ended
from actors.node.tree import DEAD_MOUNT

_NOT_ENTERED: Mapping[int, tuple[type[HoldfastError], str]] = MappingProxyType(
    {
        errno.ENOENT: (FileNotFoundInSandboxError, "it does not exist"),
        errno.ENOTDIR: (FileNotFoundInSandboxError, "it is not a directory"),
        errno.ELOOP: (FileNotFoundInSandboxError, "its symbolic links lead in a circle"),
        errno.ENAMETOOLONG: (FileNotFoundInSandboxError, "it, or one of its names, is too long"),
        errno.EACCES: (PathForbiddenError, "the command's user may not enter it"),
        **dict.fromkeys(DEAD_MOUNT, (MountLostError, "a file system under it does not answer")),
    }
)


def not_begun(said: bytes, *, status: int, cwd: str) -> HoldfastError:
    """The error of a command whose box ended before the command began, with `status` and the output `said`."""
    return _not_entered(said, cwd) or _not_built(said, status)


def not_started(error: NodeError | OSError) -> HoldfastError:
    """The error of a command for which the node could not start a box."""
    if isinstance(error, OSError) and error.errno == errno.E2BIG:
        return _too_long()
    return _unavailable(error)


def cut_off() -> SandboxUnavailableError:
    """The error of a command that ran, but whose box ended without its exit status."""
    reason, _ = reason_of(ToolKilledError(""))
    return SandboxUnavailableError(
        "The command's box ended before the command did: perhaps the sandbox's memory was used up.",
        context={"outcome": "unknown", "reason": reason, RETRYABLE: False},
    )


def find_disturbance(said: bytes, *, status: int, has_run: bool) -> SandboxUnavailableError | None:
    """The error of a tar that ended before its work was done, with `status` and the output `said`.

    None if no signal ended it and its box was built.
    """
    if has_run and not is_signalled(status):
        return None  # its output is no evidence: it may quote the caller's own file names
    try:
        check_undisturbed(Ended(status, b"", said), tool="tar", has_run=has_run)
    except NodeError as e:
        return _unavailable(e, "tar did not do its work", outcome="unknown" if has_run else "not_executed")
    return None


def _not_entered(said: bytes, cwd: str) -> HoldfastError | None:
    """The error of a working directory that cannot be entered, or None.

    Source: bubblewrap 0.8 prints these words and then strerror(3)'s, untranslated.
    """
    words = b"bwrap: Can't chdir to " + os.fsencode(cwd) + b": "
    for number, (kind, sentence) in _NOT_ENTERED.items():
        if words + os.strerror(number).encode() in said:
            return kind(f"The working directory cannot be entered: {sentence}.", context={"cwd": cwd})
    return None


def _not_built(said: bytes, status: int) -> HoldfastError:
    if os.strerror(errno.E2BIG).encode() in said:
        return _too_long()
    try:
        check_undisturbed(Ended(status, b"", said), tool="the command", has_run=False)
    except NodeError as e:
        return _unavailable(e)
    raise AssertionError("unreachable: a box that was not built is an error")


def _too_long() -> InvalidRequestError:
    return InvalidRequestError(
        "argv and env together are longer than the node takes.", hint="Put what is long into a file of the sandbox."
    )


def _unavailable(
    error: NodeError | OSError, what: str = "The command was not started", *, outcome: str = "not_executed"
) -> SandboxUnavailableError:
    reason, sentence = reason_of(error)
    log.error("command_not_begun", reason=reason, detail=str(error))
    return SandboxUnavailableError(
        f"{what}: {sentence}.",
        hint=getattr(error, "hint", None) or "Try again when other commands of the sandbox have ended.",
        context={"outcome": outcome, "reason": reason},
    )
