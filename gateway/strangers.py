"""A bounded share of the server's connections for clients that have shown no valid key.

Whoever has none can open as many connections as he likes; they displace each other, the oldest first, and nobody who
has shown a key. An honest client shows his within a round trip, long before his turn comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

_STATE = "introduce"


class Connection(Protocol):
    """One client's connection."""

    def displace(self) -> None:
        """Ends it at once; it counts no more."""


class Strangers:
    """The connections on which no valid key has come yet, the oldest first. For one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[Connection, None] = {}

    def came(self, connection: Connection) -> None:
        """A new connection; the oldest of the others is ended if there are too many."""
        self._waiting[connection] = None
        if len(self._waiting) > self._most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.displace()

    def left(self, connection: Connection) -> None:
        """A connection has ended, or a valid key has come on it."""
        self._waiting.pop(connection, None)


def introducing(state: dict[str, Any], introduce: Callable[[], None]) -> dict[str, Any]:
    """The state of a connection's requests, by which `introduce` is called once a key is valid."""
    return {**state, _STATE: introduce}


def introduced(state: dict[str, Any]) -> None:
    """A request's key is valid. Nothing happens under a server that does not count strangers."""
    introduce = state.get(_STATE)
    if introduce is not None:
        introduce()
