"""Connections that may have to make room: of clients that have shown no valid key, and those that no request holds.

Whoever has no key can open as many connections as he likes; they displace each other, the oldest first, and nobody who
has shown a key. An honest client shows his within a round trip, long before his turn comes.

Whoever has one can hold as many as `gateway.shares` lets him have requests. Beyond these, his connections give way to
others' requests, the longest idle first, when there are no more to be had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

_STATE = "introduce"


class Connection(Protocol):
    """One client's connection."""

    def displace(self) -> None:
        """Ends it at once; it counts no more."""


class Idle:
    """Connections of clients with a key that no request holds now, the longest idle first. For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[Connection, None] = {}

    def came(self, connection: Connection) -> None:
        """A connection's request has been answered. Repeatable."""
        self._waiting[connection] = None

    def left(self, connection: Connection) -> None:
        """A connection has ended, or another request has come on it."""
        self._waiting.pop(connection, None)

    def displace_one(self) -> bool:
        """Ends the one that has been idle longest; False if there is none."""
        if not self._waiting:
            return False
        longest = next(iter(self._waiting))
        del self._waiting[longest]
        longest.displace()
        return True


class Strangers(Idle):
    """The connections on which no valid key has come yet, the oldest first. For one event loop."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def came(self, connection: Connection) -> None:
        """A new connection. Of twice too many, the oldest is ended at once."""
        super().came(connection)
        if len(self._waiting) > 2 * self._most:
            self.displace_one()

    def trim(self) -> None:
        """Ends the oldest of those that are too many. To be called once what they have sent so far was looked at."""
        while len(self._waiting) > self._most:
            self.displace_one()


def introducing(state: dict[str, Any], introduce: Callable[[], None]) -> dict[str, Any]:
    """The state of a connection's requests, by which `introduce` is called once a key is valid."""
    return {**state, _STATE: introduce}


def introduced(state: dict[str, Any]) -> None:
    """A request's key is valid. Nothing happens under a server that does not count strangers."""
    introduce = state.get(_STATE)
    if introduce is not None:
        introduce()
