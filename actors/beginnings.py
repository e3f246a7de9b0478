"""Why a command of a sandbox did not begin: from the words of its box to an error that says whose fault it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import MappingProxyType

from actors.errors import (
    ExecError,
    FileNotFoundInSandboxError,
    HoldfastError,
    InvalidRequestError,
    MountLostError,
    PathForbiddenError,
    SandboxUnavailableError,
)
from actors.faults import reason_of
from actors.logs import log
from actors.node.boxed_tools import check_undisturbed
from actors.node.errors import NodeError
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
    """The error of a command whose box ended with `status`, and said this, before the command began."""
    return _not_entered(said, cwd) or _not_built(said, status)


def not_started(error: NodeError | OSError) -> HoldfastError:
    """The error of a command for which the node could not even start a box."""
    if isinstance(error, OSError) and error.errno == errno.E2BIG:
        return _too_long()
    return _unavailable(error)


def cut_off() -> ExecError:
    """The error of a command that ran, and whose box ended without its exit status."""
    return ExecError(
        "The command's box ended before the command did: perhaps the sandbox's memory was used up.",
        context={"outcome": "unknown"},
    )


def _not_entered(said: bytes, cwd: str) -> HoldfastError | None:
    """Source: bubblewrap 0.8, whose words are these and then strerror(3)'s, untranslated."""
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


def _unavailable(error: NodeError | OSError) -> SandboxUnavailableError:
    reason, sentence = reason_of(error)
    log.error("command_not_begun", reason=reason, detail=str(error))
    return SandboxUnavailableError(
        f"The command was not started: {sentence}.",
        hint=getattr(error, "hint", None) or "Try again when other commands of the sandbox have ended.",
        context={"outcome": "not_executed", "reason": reason},
    )
