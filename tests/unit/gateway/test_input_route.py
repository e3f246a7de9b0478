"""The route that sends a command its input, and the events and fields of `exec` that belong to it."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from actors.models import MAX_INPUT_BYTES, Exit, Started
from tests.unit.gateway.conftest import DEADLINE_S, Exchange, Gateway, make_gateway
from tests.unit.gateway.memory_cluster import MemoryInput

EXEC = "/v1/sandbox/box/exec"
STDIN = f"{EXEC}/a-name/stdin"


def taking(gateway: Gateway, wanted: float = float("inf")) -> MemoryInput:
    """The input of a command that takes so many bytes."""
    found = gateway.cluster.sandbox("default", "box").inputs["a-name"] = MemoryInput(wanted)
    return found


def test_the_beginning_is_an_event(gateway: Gateway) -> None:
    box = gateway.cluster.sandbox("default", "box")
    box.script = [Started(command_id="a-name"), Exit(exit_code=0)]
    answer = gateway.request("POST", EXEC, json={"argv": ["cat"], "stdin_stream": True})
    assert answer.content == (
        b'event: started\ndata: {"command_id": "a-name"}\n\nevent: exit\ndata: {"exit_code": 0}\n\n'
    )
    assert box.asked[0].stdin_stream


def test_input_comes_with_its_command_as_text_or_bytes() -> None:
    gateway = make_gateway()
    box = gateway.cluster.sandbox("default", "box")
    data = bytes(range(256)) * (MAX_INPUT_BYTES // 256)
    given = {"stdin": "ü\n"}, {"stdin": ""}, {"stdin_base64": base64.b64encode(data).decode()}
    for each in given:
        assert gateway.request("POST", EXEC, json={"argv": ["cat"], **each}).status_code == 200
    raw = json.dumps({"argv": ["cat"], "stdin": "\udce9"}).encode()
    assert gateway.request("POST", EXEC, content=raw).status_code == 200
    assert [asked.given_input for asked in box.asked] == ["ü\n".encode(), b"", data, b"\xe9"]


def test_too_much_input_with_a_command_is_refused() -> None:
    gateway = make_gateway(max_body_bytes=4 * MAX_INPUT_BYTES)
    too_much = base64.b64encode(bytes(MAX_INPUT_BYTES + 1)).decode()
    for given in ({"stdin": "x" * (MAX_INPUT_BYTES + 1)}, {"stdin_base64": too_much}):
        answer = gateway.request("POST", EXEC, json={"argv": ["cat"], **given})
        assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")
        assert gateway.cluster.sandbox("default", "box").asked == []


def test_the_body_is_passed_on_as_it_comes(gateway: Gateway) -> None:
    found = taking(gateway)

    async def scenario() -> None:
        exchange = Exchange(gateway.app, "PUT", STDIN, b"first\n", b"\xff\0", b"last")
        async with asyncio.timeout(DEADLINE_S):
            await exchange.task
        assert (exchange.status, exchange.document()) == (200, {"ok": True, "complete": True})

    asyncio.run(scenario())
    assert found.pieces == [b"first\n", b"\xff\0", b"last"]
    assert (found.ended.is_set(), found.cut_off.is_set()) == (True, False)


def test_an_empty_body_is_an_empty_input(gateway: Gateway) -> None:
    found = taking(gateway)
    assert gateway.request("PUT", STDIN).json() == {"ok": True, "complete": True}
    assert (found.pieces, found.ended.is_set()) == ([], True)


def test_a_command_that_takes_no_more_ends_the_request(gateway: Gateway) -> None:
    found = taking(gateway, wanted=3)

    async def scenario() -> None:
        exchange = Exchange(gateway.app, "PUT", STDIN, b"four", b"more", more=True)
        async with asyncio.timeout(DEADLINE_S):
            await exchange.task
        assert exchange.document() == {"ok": True, "complete": False}

    asyncio.run(scenario())
    assert (found.pieces, found.cut_off.is_set()) == ([b"four"], False)


@pytest.mark.parametrize("wanted", [0, 1])
def test_a_body_may_pause_while_the_command_runs(wanted: float) -> None:
    gateway = make_gateway(body_idle_s=0.01)
    found = taking(gateway, wanted)

    async def scenario() -> None:
        exchange = Exchange(gateway.app, "PUT", STDIN, more=True)
        async with asyncio.timeout(DEADLINE_S):
            while len(found.pieces) < 3 and not exchange.task.done():
                await asyncio.sleep(0)
            found.wanted = 0
            await exchange.task
        assert exchange.document() == {"ok": True, "complete": False}

    asyncio.run(scenario())
    assert set(found.pieces) == {b""} and (len(found.pieces) >= 3) is bool(wanted)
    assert not found.cut_off.is_set()


@pytest.mark.parametrize("what", ["disconnect", "too long", "too slow"])
def test_a_body_that_does_not_come_whole_cuts_the_input_off(what: str) -> None:
    gateway = make_gateway(max_upload_bytes=8, upload_total_s=0.05 if what == "too slow" else DEADLINE_S)
    found = taking(gateway)

    async def scenario() -> None:
        pieces = [b"part"] if what != "too long" else [b"part", b"and more"]
        exchange = Exchange(gateway.app, "PUT", STDIN, *pieces, more=True)
        if what == "disconnect":
            exchange.leave()
        async with asyncio.timeout(DEADLINE_S):
            await exchange.task
        assert exchange.status == {"disconnect": None, "too long": 413, "too slow": 408}[what]

    asyncio.run(scenario())
    assert (found.pieces, found.ended.is_set(), found.cut_off.is_set()) == ([b"part"], False, True)


def test_the_input_of_an_unknown_command_is_refused_before_its_body(gateway: Gateway) -> None:
    answer = gateway.request("PUT", STDIN, content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (404, "COMMAND_NOT_FOUND")
