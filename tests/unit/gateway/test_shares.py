"""Shares: no sandbox and no tenant takes all the requests that a gateway serves at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Message, Receive, Scope, Send

from actors.errors import TooManyCallsError
from gateway.shares import Shares


class Held:
    """An application that answers no request until the test releases it."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.release.wait()


class Requests:
    """Requests to a gateway that serves sixteen at once."""

    def __init__(self, *, tenants: int) -> None:
        self.app = Held()
        self._shares = Shares(self.app, max_requests=16, tenants=tenants)
        self._under_way: list[asyncio.Future[None]] = []

    async def is_served(self, path: str, tenant: str | None = "one") -> bool:
        """Sends one request, whose answer is awaited at the end; False if it is refused because of its share."""
        scope = {"type": "http", "path": path, "state": {} if tenant is None else {"tenant": tenant}}
        asked = asyncio.ensure_future(self._shares(scope, _nothing, _nowhere))
        await asyncio.sleep(0)
        if asked.done():
            with pytest.raises(TooManyCallsError) as refused:
                asked.result()
            assert refused.value.may_be_retried and refused.value.context["outcome"] == "not_executed"
            return False
        self._under_way.append(asked)
        return True

    async def end(self) -> None:
        self.app.release.set()
        await asyncio.gather(*self._under_way)
        self._under_way.clear()
        self.app.release.clear()


async def _nothing() -> Message:
    raise AssertionError("nothing is to be received")


async def _nowhere(message: Message) -> None:
    raise AssertionError("nothing is to be sent")


@asynccontextmanager
async def requests(*, tenants: int) -> AsyncIterator[Requests]:
    sent = Requests(tenants=tenants)
    yield sent
    await sent.end()


PATHS = ["/v1/sandbox/a/exec", "/v1/sandbox/a/file/workspace/x", "/v1/sandbox/a"]


def test_a_sandbox_gets_a_quarter_of_the_requests_and_leaves_the_rest_to_others() -> None:
    async def scenario() -> None:
        async with requests(tenants=1) as sent:
            assert [await sent.is_served(PATHS[n % 3]) for n in range(6)] == [True] * 4 + [False] * 2
            assert await sent.is_served("/v1/sandbox/b/exec")
            assert await sent.is_served("/v1/sandbox/a/exec", tenant="two")
            await sent.end()
            assert await sent.is_served("/v1/sandbox/a/exec")

    asyncio.run(scenario())


def test_one_of_several_tenants_gets_half_of_the_requests() -> None:
    async def scenario() -> None:
        async with requests(tenants=2) as sent:
            assert [await sent.is_served(f"/v1/sandbox/{n}") for n in range(10)] == [True] * 8 + [False] * 2
            assert not await sent.is_served("/v1/sandboxes")
            assert await sent.is_served("/v1/sandboxes", tenant="two")

    asyncio.run(scenario())


def test_a_single_tenant_gets_all_requests() -> None:
    async def scenario() -> None:
        async with requests(tenants=1) as sent:
            assert all([await sent.is_served(f"/v1/sandbox/{n}") for n in range(16)])

    asyncio.run(scenario())


def test_requests_without_a_tenant_count_in_no_share() -> None:
    async def scenario() -> None:
        async with requests(tenants=2) as sent:
            assert all([await sent.is_served("/health", tenant=None) for _ in range(20)])

    asyncio.run(scenario())
