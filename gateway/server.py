"""The HTTP server: uvicorn, with limits that it lacks.

Source: uvicorn 0.54; with its defaults 500 half-open requests stay open for ever, and a client that stops reading
holds its connection for ever (both measured). By default it takes uvloop where that is installed, as with Ray Serve;
here it runs on asyncio's own loop, on which the limits are tested.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import uuid
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from actors.errors import HoldfastError, InvalidRequestError, RequestTooLargeError, ServiceUnavailableError
from gateway.answers import error_answer
from gateway.capacity import MAX_CONNECTIONS, most_connections
from gateway.errors import RequestTimeoutError
from gateway.lingering import LingeringTransport
from gateway.strangers import Idle, Strangers, introducing

HEADER_LIMIT_S = 10.0
STALLED_READER_LIMIT_S = 60.0
KEEP_ALIVE_S = 10
MAX_HEADER_BYTES = 64 * 1024
GRACEFUL_S = 6
ANSWERING_S = 2.0
"""Time limit for the requests that are cancelled after `GRACEFUL_S` to write their answers."""
_BAD_REQUEST = 400
_HEAD_TOO_LONG = 431
"""The status that h11 suggests for a request, or a chunk, whose head does not end. Source: RFC 6585, section 5."""


class LimitedH11Protocol(H11Protocol):
    """HTTP/1.1 with time limits on headers, the rest of a body answered early, and clients that stop reading."""

    header_limit_s = HEADER_LIMIT_S
    stalled_reader_limit_s = STALLED_READER_LIMIT_S
    strangers = Strangers(MAX_CONNECTIONS // 4)
    idle = Idle()
    _is_known = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lingering = LingeringTransport(transport, is_receiving=self._is_receiving)
        super().connection_made(self._lingering)
        self.strangers.came(self)
        # After two rounds of the loop, requests that were sent by now are read and checked, however many came.
        self.loop.call_later(0, self.loop.call_later, 0, self.strangers.trim)
        self.app_state = introducing(self.app_state, self._introduced)
        self._sending = _Deadline(self.loop, self.header_limit_s, self._give_up)
        self._reading = _Deadline(self.loop, self.stalled_reader_limit_s, transport.abort)
        self._sending.start()

    def data_received(self, data: bytes) -> None:
        if self._lingering.lingers:
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self._answered_early():
            self._sending.start()
        else:
            self._sending.stop()
        self._note_idleness()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._has_half_a_request():
            self._unset_keepalive_if_required()
        if self._has_half_a_request() or self._answered_early():
            self._sending.start()
        self._note_idleness()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.stop()

    def displace(self) -> None:
        """Closes the connection at once, to make room for another one."""
        self.connections.discard(self)
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are no HTTP request, and closes the connection. uvicorn calls it in its error handler."""
        if getattr(sys.exception(), "error_status_hint", None) == _HEAD_TOO_LONG:
            limit = {"limit_bytes": MAX_HEADER_BYTES}
            self._refuse(RequestTooLargeError("The request's headers are too long.", context=limit), _HEAD_TOO_LONG)
        else:
            self._refuse(InvalidRequestError("This is no valid HTTP/1.1 request."), _BAD_REQUEST)

    def _give_up(self) -> None:
        """Answers half a request; closes a connection on which no request began, or a body's rest did not arrive."""
        if self._has_half_a_request():
            limit = {"limit_s": self.header_limit_s}
            self._refuse(RequestTimeoutError("The request's headers took too long to come.", context=limit))
        else:
            self.transport.close()

    def _refuse(self, error: HoldfastError, status: int | None = None) -> None:
        """Answers with the error and closes the connection. If another answer has begun, aborts the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        if self.cycle is not None:
            self.cycle.disconnected = True  # the application's own answer is dropped
            self.cycle.message_event.set()
        answer = _last_answer(error, status)
        reason = HTTPStatus(answer.status_code).phrase.encode()
        response = h11.Response(status_code=answer.status_code, headers=answer.raw_headers, reason=reason)
        for event in (response, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.strangers.left(self)
        self._sending.stop()
        self._reading.stop()
        super().connection_lost(exc)
        self.idle.left(self)

    def _introduced(self) -> None:
        self.strangers.left(self)
        self._is_known = True

    def _note_idleness(self) -> None:
        """Records whether a request holds the connection. An answered one does not, even if its body still arrives."""
        if not self._is_known or self.transport.is_closing():
            return
        if self.cycle.response_complete:
            self.idle.came(self)
        else:
            self.idle.left(self)

    def _has_half_a_request(self) -> bool:
        return self.conn.our_state is h11.IDLE and bool(self.conn.trailing_data[0])

    def _is_receiving(self) -> bool:
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _answered_early(self) -> bool:
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY


class _Deadline:
    """A timer that calls `action` unless it is stopped in time. Starting it again while it runs changes nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float, action: Callable[[], None]) -> None:
        self._loop, self._limit_s, self._action = loop, limit_s, action
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._limit_s, self._action)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Doorkeeper:
    """Refuses requests that must not be served, before the application sees them, and closes their connections.

    It refuses requests beyond the limit of connections, of another version of HTTP, and with their length given in two
    ways: a proxy on the way may have believed the other one. Source: RFC 9112, section 6.1.
    """

    def __init__(self, app: ASGIApp, *, most: int, idle: Idle) -> None:
        self._app = app
        self._most = most
        self._idle = idle
        self.connections: Collection[Any] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self._app)(_in_origin_form(scope), receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        if len(self.connections) > self._most and not self._idle.displace_one():
            sentence = "The service has as many connections as it may."
            return _last_answer(ServiceUnavailableError(sentence, hint="Try again in a moment."))
        if not scope["http_version"].startswith("1."):
            return _last_answer(InvalidRequestError("Only HTTP/1.1 and HTTP/1.0 are served here."), _BAD_REQUEST)
        names = {name for name, _ in scope["headers"]}
        if {b"content-length", b"transfer-encoding"} <= names:
            sentence = "A request may not have both a Content-Length and a Transfer-Encoding."
            return _last_answer(InvalidRequestError(sentence), _BAD_REQUEST)
        return None


def _in_origin_form(scope: Scope) -> Scope:
    """The request's scope without the scheme and host that its target may name, as for a proxy.

    Source: RFC 9112, section 3.2.2: a server has to accept such targets.
    """
    scheme, separator, rest = scope.get("raw_path", b"").partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return scope
    raw_path = b"/" + rest.partition(b"/")[2]
    return {**scope, "raw_path": raw_path, "path": unquote(raw_path.decode("ascii"))}


def _last_answer(error: HoldfastError, status: int | None = None) -> Response:
    """The last answer of a connection: an error, for a request that the application has not seen."""
    request_id = uuid.uuid4().hex
    headers = {"Connection": "close", "X-Request-Id": request_id, "X-Content-Type-Options": "nosniff"}
    return error_answer(error, {"state": {"request_id": request_id}}, status=status, headers=headers)


class PatientServer(uvicorn.Server):
    """A server that lets the requests it cancels at its end write their answers."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if tasks := set(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=ANSWERING_S)


def server(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    graceful_s: int = GRACEFUL_S,
    on_listening: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """Creates a server; its `run` or `serve` starts it.

    Args:
        app: the gateway.
        host: the address to listen on.
        port: 0 takes a free one.
        graceful_s: seconds for running requests to end after SIGTERM; then they are answered with an error.
        on_listening: called once, as soon as connections are accepted.
    """
    most, idle = most_connections(), Idle()
    doorkeeper = Doorkeeper(app, most=most, idle=idle)
    made = PatientServer(
        uvicorn.Config(
            doorkeeper,
            host=host,
            port=port,
            loop="asyncio",
            http=_protocol(most // 4, idle),
            ws="none",
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=graceful_s,
            server_header=False,
            proxy_headers=False,
            access_log=False,
            log_config=None,
            log_level="error",  # mistakes of clients are answered, not logged
        ),
        on_listening,
    )
    doorkeeper.connections = made.server_state.connections
    return made


def _protocol(most_strangers: int, idle_ones: Idle) -> type[LimitedH11Protocol]:
    """The protocol class of one server, with its own strangers and idle connections."""

    class Protocol(LimitedH11Protocol):
        strangers = Strangers(most_strangers)
        idle = idle_ones

    return Protocol
