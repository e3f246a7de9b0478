from __future__ import annotations

import asyncio
import base64

from actors.errors import ExecError, ExecTimeoutError
from actors.models import Exit, Output
from tests.unit.gateway.conftest import DEADLINE_S, Exchange, Gateway, make_gateway
from tests.unit.gateway.memory_cluster import Silence

EXEC = "/v1/sandbox/box/exec"
BODY = b'{"argv":["x"]}'


def data(raw: bytes) -> bytes:
    return base64.b64encode(raw)


def test_output_and_exit_are_framed(gateway: Gateway) -> None:
    noisy = b"a\n\ndata: x\r\x00\xff"
    gateway.cluster.sandbox("default", "box").script = [
        Output(stream="stdout", data=noisy),
        Output(stream="stderr", data=b"e"),
        Output(stream="stdout", data=b""),
        Exit(exit_code=3),
    ]
    response = gateway.request("POST", EXEC, content=BODY)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.content == (
        b"event: stdout\ndata: " + data(noisy) + b"\n\n"
        b"event: stderr\ndata: " + data(b"e") + b"\n\n"
        b'event: exit\ndata: {"exit_code": 3}\n\n'
    )


def test_an_error_before_any_output_is_an_http_error(gateway: Gateway) -> None:
    gateway.cluster.sandbox("default", "box").script = [ExecError("No such program.")]
    response = gateway.request("POST", EXEC, content=BODY)
    assert (response.status_code, response.json()["code"]) == (500, "EXEC_FAILED")


def test_an_error_after_output_is_the_last_event(gateway: Gateway) -> None:
    gateway.cluster.sandbox("default", "box").script = [
        Output(stream="stdout", data=b"a"),
        ExecTimeoutError("Too long.\nReally."),
    ]
    response = gateway.request("POST", EXEC, content=BODY)
    assert response.status_code == 200
    assert response.text.endswith('event: error\ndata: {"error": "Too long.\\nReally.", "code": "EXEC_TIMEOUT"}\n\n')


def test_a_silent_command_is_kept_alive_until_the_client_leaves() -> None:
    async def scenario() -> None:
        gateway = make_gateway(keep_alive_s=0.01)
        box = gateway.cluster.sandbox("default", "box")
        box.script = [Silence()]
        exchange = Exchange(gateway.app, "POST", EXEC, BODY)
        async with asyncio.timeout(DEADLINE_S):
            await exchange.until_sent(b": keep-alive\n\n: keep-alive\n\n")
            assert not box.streams[0].closed.is_set()
            exchange.leave()
            await exchange.task
        assert box.streams[0].closed.is_set()
        assert not exchange.complete

    asyncio.run(scenario())


def test_a_client_that_leaves_before_any_output_stops_the_command(gateway: Gateway) -> None:
    async def scenario() -> None:
        box = gateway.cluster.sandbox("default", "box")
        box.script = [Silence()]
        exchange = Exchange(gateway.app, "POST", EXEC, BODY)
        async with asyncio.timeout(DEADLINE_S):
            while not box.streams:
                await asyncio.sleep(0)
            await box.streams[0].silent.wait()
            exchange.leave()
            await exchange.task
        assert box.streams[0].closed.is_set()
        assert exchange.sent == []

    asyncio.run(scenario())


def test_a_client_that_leaves_in_mid_output_stops_the_command(gateway: Gateway) -> None:
    async def scenario() -> None:
        box = gateway.cluster.sandbox("default", "box")
        box.script = [Output(stream="stdout", data=b"a"), Silence()]
        exchange = Exchange(gateway.app, "POST", EXEC, BODY)
        async with asyncio.timeout(DEADLINE_S):
            await exchange.until_sent(data(b"a"))
            exchange.leave()
            await exchange.task
        assert box.streams[0].closed.is_set()
        assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []

    asyncio.run(scenario())


def test_a_command_is_stopped_though_the_request_is_cancelled_while_its_client_leaves(gateway: Gateway) -> None:
    async def scenario() -> None:
        for turns in range(12):  # of the event loop, between the disconnect and the cancellation
            box = gateway.cluster.sandbox("default", f"box-{turns}")
            box.script = [Output(stream="stdout", data=b"a"), Silence()]
            exchange = Exchange(gateway.app, "POST", f"/v1/sandbox/box-{turns}/exec", BODY)
            async with asyncio.timeout(DEADLINE_S):
                await exchange.until_sent(data(b"a"))
                exchange.leave()
                for _ in range(turns):
                    await asyncio.sleep(0)
                exchange.task.cancel()
                await asyncio.wait({exchange.task})
                assert box.streams[0].closed.is_set(), f"cancelled after {turns} turns"

    asyncio.run(scenario())


def test_a_command_cut_short_by_a_stopping_server_ends_with_an_error_event(gateway: Gateway) -> None:
    async def scenario() -> None:
        box = gateway.cluster.sandbox("default", "box")
        box.script = [Output(stream="stdout", data=b"a"), Silence()]
        exchange = Exchange(gateway.app, "POST", EXEC, BODY)
        async with asyncio.timeout(DEADLINE_S):
            await exchange.until_sent(data(b"a"))
            exchange.task.cancel()
            await exchange.task
        assert exchange.complete
        last = exchange.body.decode().rstrip("\n").rpartition("\n\n")[2]
        assert last == 'event: error\ndata: {"error": "The service is stopping.", "code": "SERVICE_UNAVAILABLE"}'
        assert box.streams[0].closed.is_set()
        assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []

    asyncio.run(scenario())
