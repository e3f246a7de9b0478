"""Raw bytes on a socket, and the parsed answers, for requests that no HTTP client would send."""

from __future__ import annotations

import http.client
import io
import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from typing import Any, cast

ANSWER_S = 120.0
"""Longer than the time after which the service answers a request whose body stops coming."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer; `status` is 0 if the connection was closed instead."""

    status: int
    headers: Message
    body: bytes


CLOSED = Answer(0, Message(), b"")


class _Incoming(io.BufferedReader):
    """Received bytes. Stays open for the next answer."""

    def makefile(self, mode: str) -> _Incoming:
        """Takes the place of a socket's method."""
        return self

    def close(self) -> None: ...


class Wire:
    """A connection for sending arbitrary bytes. Answers are read one after the other."""

    def __init__(self, address: tuple[str, int], *, timeout_s: float = ANSWER_S) -> None:
        self._socket = socket.create_connection(address, timeout=timeout_s)
        self._incoming = _Incoming(cast("Any", socket.SocketIO(self._socket, "rb")))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Sends the bytes, as far as the other side accepts them."""
        with suppress(ConnectionError):
            self._socket.sendall(data)

    def answer(self, *, to: str = "GET") -> Answer:
        """Reads the next answer; skips interim ones (100 Continue).

        Raises:
            AssertionError: the answer is incomplete.
            TimeoutError: no answer comes, and the connection stays open.
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
    """Sends bytes; fails unless the answers have these statuses, and each error its document."""
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
    """An error's document. Checks that it has the shape that all errors share."""
    document: dict[str, Any] = json.loads(answer.body)
    assert (
        {"code", "error", "context", "request_id"}
        <= document.keys()
        <= {"code", "error", "context", "request_id", "hint"}
    )
    assert document["request_id"] == answer.headers["X-Request-Id"]
    assert answer.headers["Content-Type"] == "application/json"
    return document
