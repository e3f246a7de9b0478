"""The server's limits on connections: times through a transport in memory, numbers over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.app import ClusterThreads
from gateway.auth import Authentication
from gateway.boundary import ErrorBoundary
from gateway.server import LimitedH11Protocol, server
from tests.support.mount_leaks import wait_until
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

    def can_write_eof(self) -> bool:
        return False

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
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(limited())


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: h\r\nX-Slow: "])
def test_a_connection_whose_headers_do_not_come_is_closed(sent: bytes) -> None:
    async def scenario() -> None:
        protocol, transport = _connection(header_s=AT_ONCE_S)
        if sent:
            protocol.data_received(sent)
        await transport.ended.wait()
        assert transport.written[:13] == (b"HTTP/1.1 408 " if sent else b"")

    run(scenario)


def test_the_time_limit_for_headers_ends_with_complete_headers() -> None:
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


def test_the_rest_of_a_body_has_a_time_limit_after_the_answer() -> None:
    async def scenario() -> None:
        protocol, transport = _connection(header_s=AT_ONCE_S)
        protocol.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n123")
        await transport.ended.wait()
        assert transport.written.endswith(b"ok")

    run(scenario)


def test_a_client_that_does_not_read_is_disconnected() -> None:
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


def test_the_server_sets_its_limits_explicitly() -> None:
    config = server(_ok, host="127.0.0.1", port=0).config
    assert config.h11_max_incomplete_event_size
    assert config.timeout_graceful_shutdown
    assert not config.server_header


def test_a_request_that_outlasts_the_servers_end_is_answered_by_the_protocol() -> None:
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


def test_a_server_says_that_it_listens_only_once_it_accepts_connections() -> None:
    async def scenario() -> None:
        with socket.socket() as bound:  # and so refuses connections until it listens
            bound.bind(("127.0.0.1", 0))
            starting = server(_ok, host="127.0.0.1", port=0, on_listening=said.set)
            starting.config.lifespan = "off"
            serving = asyncio.ensure_future(starting.serve(sockets=[bound]))
            await said.wait()
            _, writer = await asyncio.open_connection(*bound.getsockname())
            writer.close()
            starting.should_exit = True
            await serving

    said = asyncio.Event()
    run(scenario)


def test_threads_that_wait_for_a_dead_cluster_do_not_block_the_loops_end() -> None:
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


KEY = "a-key-of-forty-characters-for-this-test"
KEYS = {"default": SecretStr(KEY)}


class Listening:
    """A server on a free port of this machine, in a thread, with a limit of `connections`."""

    def __init__(self, app: ASGIApp, connections: int) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("gateway.capacity.MAX_CONNECTIONS", connections)
            self.server = server(app, host="127.0.0.1", port=0)
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.socket.getsockname()[1]
        self.clients: list[socket.socket] = []
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> Listening:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        self.server.should_exit = True
        self._thread.join()
        self.socket.close()

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        self.clients.append(client)
        return client

    def ask(self, request: bytes, client: socket.socket | None = None) -> http.client.HTTPResponse:
        client = client or self.connect()
        client.sendall(request)
        response = http.client.HTTPResponse(client)
        response.begin()
        return response


def with_key(app: ASGIApp) -> ASGIApp:
    async def entered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"]["request_id"] = "an-id"
        await ErrorBoundary(Authentication(app, keys_by_tenant=KEYS), log=LogLines())(scope, receive, send)

    return entered


def request(path: str = "/", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: h", *headers, "", ""]).encode()


WITH_KEY = request("/", f"Authorization: Bearer {KEY}")


def documented(response: http.client.HTTPResponse) -> dict[str, object]:
    document: dict[str, object] = json.loads(response.read())
    assert {"code", "error", "request_id"} <= document.keys()
    assert response.headers["X-Request-Id"] == document["request_id"]
    return document


@pytest.mark.parametrize(
    "first", [b"", b"GET / HTTP/1.1\r\nX-Slow: ", request("/health"), request("/", "Authorization: Bearer wrong")]
)
def test_clients_without_a_key_displace_only_each_other(first: bytes) -> None:
    with Listening(with_key(_ok), connections=64) as listening:
        mine = listening.connect()
        assert listening.ask(WITH_KEY, mine).read() == b"ok"
        for _ in range(200):
            with suppress(OSError):  # the oldest ones are disconnected meanwhile
                listening.connect().sendall(first)
        assert listening.ask(WITH_KEY, mine).read() == b"ok"
        assert listening.ask(WITH_KEY).read() == b"ok"
        assert listening.ask(request("/health")).status == 200
        assert wait_until(lambda: len(listening.server.server_state.connections) <= 64 // 4 + 2)


def test_a_client_with_a_key_is_served_among_many_without() -> None:
    async def blocking(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/block":
            reached.set()
            released.wait()
        await _ok(scope, receive, send)

    reached, released = threading.Event(), threading.Event()
    with Listening(with_key(blocking), connections=64) as listening:
        blocker = listening.connect()
        blocker.sendall(request("/block", f"Authorization: Bearer {KEY}"))
        assert reached.wait(60)
        honest = listening.connect()
        honest.sendall(WITH_KEY)
        for _ in range(2 * (64 // 4) - 1):
            listening.connect()
        released.set()
        response = http.client.HTTPResponse(honest)
        response.begin()
        assert response.read() == b"ok"


async def _unending(scope: Scope, receive: Receive, send: Send) -> None:
    """Begins an answer, and ends it when the client disconnects."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass


def test_a_connection_beyond_the_limit_gets_an_error_document_and_is_closed() -> None:
    with Listening(with_key(_unending), connections=8) as listening:
        for _ in range(8):
            assert listening.ask(WITH_KEY, listening.connect()).read1() == b"begun"
        response = listening.ask(WITH_KEY)
        assert response.status == 503 and response.headers["Connection"] == "close" and response.headers["Retry-After"]
        assert documented(response)["code"] == "SERVICE_UNAVAILABLE"


HALF_SENT = request("/", f"Authorization: Bearer {KEY}", "Content-Length: 9").replace(b"GET", b"PUT")


@pytest.mark.parametrize("first", [WITH_KEY, WITH_KEY + b"GET / HTTP/1.1\r\nX-Slow: ", HALF_SENT + b"123"])
def test_idle_connections_make_room_the_longest_idle_first(first: bytes) -> None:
    with Listening(with_key(_ok), connections=8) as listening:
        for _ in range(8):
            assert listening.ask(first).read() == b"ok"
        assert listening.ask(WITH_KEY).read() == b"ok"
        longest, *_, latest, _ = listening.clients
        with suppress(ConnectionResetError):
            assert longest.recv(1) == b""
        if first == WITH_KEY:
            assert listening.ask(WITH_KEY, latest).read() == b"ok"


def test_a_connection_with_a_running_request_makes_no_room() -> None:
    with Listening(with_key(_unending), connections=8) as listening:
        held = [listening.ask(WITH_KEY) for _ in range(8)]
        assert [response.read1() for response in held] == [b"begun"] * 8
        assert listening.ask(WITH_KEY).status == 503
        for client in listening.clients[:8]:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
        for response in held:
            response.close()  # so that the server does not wait for them when it stops


@pytest.mark.parametrize("wrong", [b"\x00\xff\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"])
def test_bytes_that_are_no_request_get_an_error_document_and_a_closed_connection(wrong: bytes) -> None:
    with Listening(_ok, connections=64) as listening:
        response = listening.ask(wrong)
        assert response.status == 400 and response.headers["Connection"] == "close"
        assert documented(response)["code"] == "INVALID_REQUEST"


def test_a_body_that_becomes_malformed_during_the_answer_cuts_the_connection() -> None:
    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass

    with Listening(answering, connections=64) as listening:
        client = listening.connect()
        head = request("/", "Transfer-Encoding: chunked").replace(b"GET", b"POST")
        response = listening.ask(head, client)
        assert response.read1() == b"begun"
        client.sendall(b"no length\r\n")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


def test_a_request_with_two_lengths_is_refused_and_its_connection_closed() -> None:
    with Listening(_ok, connections=64) as listening:
        client = listening.connect()
        body = b"5\r\nhello\r\n0\r\n\r\n"
        head = request("/", "Transfer-Encoding: chunked", f"Content-Length: {len(body)}").replace(b"GET", b"POST")
        response = listening.ask(head + body + WITH_KEY, client)
        assert response.status == 400 and response.headers["Connection"] == "close"
        assert "Content-Length" in str(documented(response)["error"])
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    "head",
    [
        request("/", "Connection: close", f"Content-Length: {10**8}"),
        request("/", f"Content-Length: {10**8}").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("/", "Transfer-Encoding: chunked", f"Content-Length: {10**8}"),
        request("/", "Transfer-Encoding: chunked") + b"no length\r\n",
        b"GET / HTTP/1.1\r\nX: ",
    ],
)
def test_the_last_answer_arrives_though_the_client_still_sends(head: bytes) -> None:
    with Listening(with_key(_ok), connections=64) as listening:
        for _ in range(5):
            client = listening.connect()
            client.sendall(head)
            for _ in range(40):
                client.sendall(b"x" * 2**18)
            response = listening.ask(b"", client)
            assert response.status in (400, 401, 431)
            assert {"code", "error", "request_id"} <= json.loads(response.read()).keys()
            assert client.recv(1) == b""
