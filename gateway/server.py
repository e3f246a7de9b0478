"""uvicorn, with the limits that it does not set by itself.

Source: uvicorn 0.54; with its defaults 500 half-open requests stay open for ever, and a reader that stops
reading holds its connection for ever (both measured). It would take uvloop if that is installed, as Ray Serve has it;
the limits are tested on asyncio's own loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_LIMIT_S = 10.0
STALLED_READER_LIMIT_S = 60.0
KEEP_ALIVE_S = 10
MAX_HEADER_BYTES = 64 * 1024
MAX_CONNECTIONS = 2048
GRACEFUL_S = 6
ANSWERING_S = 2.0
"""How long the requests that are cancelled then may take to write their answers."""


class LimitedH11Protocol(H11Protocol):
    """HTTP/1.1 with time limits on headers, on the rest of a body answered early, and on a stalled reader."""

    header_limit_s = HEADER_LIMIT_S
    stalled_reader_limit_s = STALLED_READER_LIMIT_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._sending = _Deadline(self.loop, self.header_limit_s, transport.close)
        self._reading = _Deadline(self.loop, self.stalled_reader_limit_s, transport.abort)
        self._sending.start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self._answered_early():
            self._sending.start()
        else:
            self._sending.stop()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._answered_early():
            self._sending.start()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._sending.stop()
        self._reading.stop()
        super().connection_lost(exc)

    def _answered_early(self) -> bool:
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY


class _Deadline:
    """Calls `action` unless it is stopped in time. Starting a started one changes nothing."""

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


class PatientServer(uvicorn.Server):
    """A server that lets the requests which it cancels at its end write their answers."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if tasks := set(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=ANSWERING_S)


def server(app: ASGIApp, *, host: str, port: int, graceful_s: int = GRACEFUL_S) -> uvicorn.Server:
    """A server that is not running yet; `run` or `serve` it.

    Args:
        app: the gateway.
        host: the address to listen on.
        port: 0 takes a free one.
        graceful_s: how long running requests may take to end after SIGTERM; then they are answered with an error.
    """
    return PatientServer(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            loop="asyncio",
            http=LimitedH11Protocol,
            ws="none",
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=graceful_s,
            server_header=False,
            proxy_headers=False,
            access_log=False,
            log_config=None,
        )
    )
