"""The time limits of a connection, driven through a transport in memory."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.app import ClusterThreads
from gateway.boundary import ErrorBoundary
from gateway.server import LimitedH11Protocol, server
from tests.unit.gateway.conftest import LogLines

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


def test_a_request_that_outlasts_the_servers_end_gets_its_answer_from_the_wire() -> None:
    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        reached.set()
        await asyncio.Event().wait()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["request_id"] = "an-id"
        await ErrorBoundary(stuck, log=LogLines())(scope, receive, send)

    async def scenario() -> None:
        ending = server(app, host="127.0.0.1", port=0, graceful_s=0)
        ending.config.lifespan = "off"
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.ensure_future(ending.serve(sockets=[listening]))
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            await reached.wait()
            ending.should_exit = True
            answer = await reader.read()
            await serving
            writer.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        document = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert document["code"] == "SERVICE_UNAVAILABLE"
        assert document["request_id"] == "an-id"

    reached = asyncio.Event()
    run(scenario)


def test_threads_that_wait_for_a_cluster_that_is_gone_keep_no_loop_from_its_end() -> None:
    released = threading.Event()

    async def scenario() -> None:
        asyncio.get_running_loop().set_default_executor(ClusterThreads())
        waiting = asyncio.ensure_future(asyncio.to_thread(released.wait))
        await asyncio.sleep(0)
        waiting.cancel()

    try:
        run(scenario)
    finally:
        released.set()
