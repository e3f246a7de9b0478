"""Connections that may be closed to make room: those without a valid key so far, and those that no request holds.

A client without a key can open any number of connections, but they displace only each other, the oldest first. An
honest client shows its key within a round trip, long before its connection is the oldest.

A client with a key can hold as many connections as `gateway.shares` allows it requests. Its other connections are idle;
when the limit of connections is reached, the longest idle ones make room for new requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

_STATE = "introduce"


class Connection(Protocol):
    """One client's connection."""

    def displace(self) -> None:
        """Closes the connection at once; it no longer counts."""


class Idle:
    """The idle connections of clients with a key: no request holds them. Longest idle first. For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[Connection, None] = {}

    def came(self, connection: Connection) -> None:
        """Adds a connection whose request has been answered. Repeatable."""
        self._waiting[connection] = None

    def left(self, connection: Connection) -> None:
        """Removes a connection that has ended, or on which another request has begun."""
        self._waiting.pop(connection, None)

    def displace_one(self) -> bool:
        """Closes the connection that has waited longest; False if there is none."""
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
        """Adds a new connection. Beyond twice the limit, closes the oldest at once."""
        super().came(connection)
        if len(self._waiting) > 2 * self._most:
            self.displace_one()

    def trim(self) -> None:
        """Closes the oldest connections beyond the limit. Call it once the bytes received so far are processed."""
        while len(self._waiting) > self._most:
            self.displace_one()


def introducing(state: dict[str, Any], introduce: Callable[[], None]) -> dict[str, Any]:
    """The state for a connection's requests, with which `introduced` calls `introduce` once a key is valid."""
    return {**state, _STATE: introduce}


def introduced(state: dict[str, Any]) -> None:
    """Reports that a request's key is valid. Does nothing under a server that does not count strangers."""
    introduce = state.get(_STATE)
    if introduce is not None:
        introduce()
