"""Requests as bytes on a socket, and answers as they come back: for what no HTTP client would send."""

from __future__ import annotations

import http.client
import io
import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from typing import Any, cast

ANSWER_S = 45.0
"""Longer than a body may stop coming before the request is answered."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, whole; `status` is 0 where the connection was closed instead."""

    status: int
    headers: Message
    body: bytes


CLOSED = Answer(0, Message(), b"")


class _Incoming(io.BufferedReader):
    """What comes on a socket. Stays open for the next answer."""

    def makefile(self, mode: str) -> _Incoming:
        """As of a socket, which this takes the place of."""
        return self

    def close(self) -> None: ...


class Wire:
    """A connection on which anything may be sent. Answers are read one after the other."""

    def __init__(self, address: tuple[str, int], *, timeout_s: float = ANSWER_S) -> None:
        self._socket = socket.create_connection(address, timeout=timeout_s)
        self._incoming = _Incoming(cast("Any", socket.SocketIO(self._socket, "rb")))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes, as far as the other side takes them."""
        with suppress(ConnectionError):
            self._socket.sendall(data)

    def answer(self, *, to: str = "GET") -> Answer:
        """The next answer, but for those that only say to go on.

        Raises:
            AssertionError: it ends before its end.
            TimeoutError: none comes, and the connection is not closed either.
        """
        response = http.client.HTTPResponse(cast("socket.socket", self._incoming), method=to)
        try:
            response.begin()
        except (http.client.RemoteDisconnected, ConnectionError):
            return CLOSED
        try:
            return Answer(response.status, response.headers, response.read())
        except http.client.IncompleteRead as e:
            raise AssertionError(f"an answer of status {response.status} was cut off: {e.partial[-200:]!r}") from None


def answered_as_documented(address: tuple[str, int], sent: bytes, expected: tuple[int, ...]) -> None:
    """Sends bytes, and fails unless the answers have these statuses, and each error its document."""
    method = sent.partition(b" ")[0].decode("latin-1")
    with Wire(address) as wire:
        wire.send(sent)
        for status in expected:
            answer = wire.answer(to=method)
            assert answer.status == status, (expected, answer)
            if status >= 400:
                assert answer.headers["Content-Type"] == "application/json"
                assert method == "HEAD" or refusal_of(answer)["error"]


def refusal_of(answer: Answer) -> dict[str, Any]:
    """The document of an error, which must have the one shape that all have."""
    document: dict[str, Any] = json.loads(answer.body)
    assert (
        {"code", "error", "context", "request_id"}
        <= document.keys()
        <= {"code", "error", "context", "request_id", "hint"}
    )
    assert document["request_id"] == answer.headers["X-Request-Id"]
    assert answer.headers["Content-Type"] == "application/json"
    return document
