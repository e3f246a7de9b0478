"""The time limits of a connection, driven through a transport in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.server import LimitedH11Protocol, server

NEVER_S = 3600.0
AT_ONCE_S = 0.0


class MemoryTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = asyncio.Event()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.ended.set()

    def abort(self) -> None:
        self.aborted = True
        self.ended.set()

    def is_closing(self) -> bool:
        return self.ended.is_set()

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def _ok(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("ok")(scope, receive, send)


def _connection(*, header_s: float, reader_s: float = NEVER_S) -> tuple[LimitedH11Protocol, MemoryTransport]:
    config = uvicorn.Config(_ok, log_config=None, ws="none", lifespan="off", timeout_keep_alive=int(NEVER_S))
    config.load()
    protocol = LimitedH11Protocol(config, ServerState(), {}, asyncio.get_running_loop())
    protocol.header_limit_s, protocol.stalled_reader_limit_s = header_s, reader_s
    transport = MemoryTransport()
    protocol.connection_made(transport)
    return protocol, transport


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(limited())


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: h\r\nX-Slow: "])
def test_headers_that_do_not_come_end_the_connection(sent: bytes) -> None:
    async def scenario() -> None:
        protocol, transport = _connection(header_s=AT_ONCE_S)
        if sent:
            protocol.data_received(sent)
        await transport.ended.wait()

    run(scenario)


def test_whole_headers_stop_the_clock() -> None:
    async def scenario() -> None:
        protocol, transport = _connection(header_s=AT_ONCE_S)
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        while not transport.written.endswith(b"ok"):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not transport.ended.is_set()
        protocol.data_received(b"GET /")
        await transport.ended.wait()

    run(scenario)


def test_a_body_that_nobody_waits_for_any_more_has_to_end_soon() -> None:
    async def scenario() -> None:
        protocol, transport = _connection(header_s=AT_ONCE_S)
        protocol.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n123")
        await transport.ended.wait()
        assert transport.written.endswith(b"ok")

    run(scenario)


def test_a_client_that_does_not_read_is_cut_off() -> None:
    async def scenario() -> None:
        protocol, transport = _connection(header_s=NEVER_S, reader_s=AT_ONCE_S)
        protocol.pause_writing()
        protocol.resume_writing()
        await asyncio.sleep(0)
        assert not transport.aborted
        protocol.pause_writing()
        await transport.ended.wait()
        assert transport.aborted

    run(scenario)


def test_the_server_sets_its_limits_on_purpose() -> None:
    config = server(_ok, host="127.0.0.1", port=0).config
    assert config.limit_concurrency
    assert config.h11_max_incomplete_event_size
    assert config.timeout_graceful_shutdown
    assert not config.server_header
