"""The id of the request being served: sent with every call to an actor, and part of each line that the actor logs.

It travels as an argument of its own. A task's name could carry it, but Ray counts tasks by their names, and would keep
some fifteen series in its metrics for each request (measured on Ray 2.60).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

ARGUMENT = "_request_id"
"""The keyword for the id in every method of an observed actor; see `actors.host.observation`."""
_current: ContextVar[str | None] = ContextVar("holdfast_request_id", default=None)


@contextmanager
def serving(request_id: str) -> Iterator[None]:
    """Adds the id to every call that is sent within the block."""
    token = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)


def carrying(handle: Any) -> Any:
    """An actor's handle whose calls carry the current request's id; the handle itself outside of a request."""
    request_id = _current.get()
    return handle if request_id is None else _Carrying(handle, request_id)


class _Carrying:
    def __init__(self, handle: Any, request_id: str) -> None:
        self._handle = handle
        self._request_id = request_id

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._handle, name), self._request_id)


class _Method:
    def __init__(self, method: Any, request_id: str) -> None:
        self._method = method
        self._request_id = request_id

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self._method.remote(*args, **kwargs, **{ARGUMENT: self._request_id})
