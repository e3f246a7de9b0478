"""Ray's errors: their conversion into ours, and their meaning for the call that failed.

Measured on Ray 2.60: `RayTaskError` carries our own error as its cause; `ActorUnavailableError` means "perhaps
executed"; `ActorDiedError` of an actor that may restart without limit means that it left through its mailbox, so that
the call was never executed and may be sent again.
"""

from __future__ import annotations

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)

from actors.errors import (
    FilesElsewhereError,
    HoldfastError,
    InternalError,
    OperationCancelledError,
    SandboxMovingError,
    SandboxUnavailableError,
    ServiceUnavailableError,
    TurnedAwayError,
)


def unwrapped(e: RayError) -> HoldfastError:
    """Converts an error of Ray's into ours, without pids, addresses and colour codes."""
    if isinstance(e, RayTaskError):
        cause = e.cause
        if isinstance(cause, HoldfastError):
            return cause
        if isinstance(cause, RayError):
            return unwrapped(cause)
        return InternalError("The actor failed in a way it has no name for.", context={"cause": type(cause).__name__})
    if isinstance(e, TaskCancelledError):
        return OperationCancelledError("The call was cancelled.")
    if isinstance(e, ActorUnavailableError):
        return gone_in_mid_call()
    if isinstance(e, RayActorError):
        return SandboxUnavailableError("The actor is gone.", context={"outcome": "not_executed"})
    if isinstance(e, GetTimeoutError):
        return ServiceUnavailableError("The cluster did not answer in time.")
    return InternalError("Ray failed.", context={"cause": type(e).__name__})


def is_rays(e: BaseException) -> bool:
    """Tells whether an error is one of Ray's."""
    return isinstance(e, RayError)


def was_leaving(e: RayError) -> bool:
    """Tells whether a call was not executed because its actor had left, or was leaving."""
    return isinstance(e, ActorDiedError) or _is_caused_by(e, TurnedAwayError)


def is_elsewhere(e: RayError) -> bool:
    """Tells whether an actor refused a call because the sandbox's files are on another node."""
    return _is_caused_by(e, FilesElsewhereError)


def moves(e: RayError) -> bool:
    """Tells whether an actor, or the service, refused a call because the sandbox is being handed over."""
    return _is_caused_by(e, SandboxMovingError)


def _is_caused_by(e: RayError, kind: type[HoldfastError]) -> bool:
    return isinstance(e, RayTaskError) and isinstance(e.cause, kind)


def gone_in_mid_call() -> SandboxUnavailableError:
    return SandboxUnavailableError(
        "The actor went away during the call.",
        hint="Look at the sandbox's state before you repeat the call.",
        context={"outcome": "unknown"},
    )
