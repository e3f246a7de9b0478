"""The error filter of every actor: only our own errors leave it. Others could carry what callers must not see."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

from actors.errors import HoldfastError, InternalError, ServiceUnavailableError
from actors.logs import log
from actors.rpc.ray_errors import is_rays
from actors.rpc.runtime import NotAnsweredError

T = TypeVar("T")


def guarded(act: Callable[[], T]) -> T:
    """Calls `act`, passes our own errors on and replaces all others."""
    try:
        return act()
    except HoldfastError:
        raise
    except Exception as e:
        if not (is_rays(e) or isinstance(e, NotAnsweredError)):
            raise _unexpected(e) from None
        log.warning("cluster_failed", error=type(e).__name__)
        raise ServiceUnavailableError("The cluster did not answer.", context={"outcome": "not_executed"}) from None


def guarded_items(begin: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Does the same for a call that answers with many items."""
    try:
        yield from begin()
    except HoldfastError:
        raise
    except Exception as e:
        raise _unexpected(e) from None


def _unexpected(error: Exception) -> InternalError:
    # Logs the place, but not the message: that may contain a path of the node, or a secret.
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    log.error("unexpected_error", error=type(error).__name__, where=where)
    return InternalError("Something failed that has no name of its own.", context={"cause": type(error).__name__})
