from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.types import Message

from gateway.app import create_app
from gateway.config import GatewayConfig
from tests.unit.gateway.memory_cluster import MemoryCluster

KEY = "key-of-the-default-tenant"
OTHER_KEY = "key-of-the-other-tenant"
DEADLINE_S = 60.0


@dataclass
class LogLines:
    """A structlog-like logger that keeps its lines."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def info(self, event: str, **values: Any) -> None:
        self.lines.append({"event": event, **values})

    warning = error = info


@dataclass
class Gateway:
    """An app over a cluster in memory, with a client that waits for whole answers."""

    app: FastAPI
    cluster: MemoryCluster
    log: LogLines

    def request(
        self,
        method: str,
        path: str,
        *,
        key: str | None = KEY,
        content: bytes | AsyncIterator[bytes] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
    ) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                async with asyncio.timeout(DEADLINE_S):
                    return await client.request(
                        method, path, content=content, json=json, headers=_with_key(headers, key)
                    )

        return asyncio.run(run())


class Exchange:
    """One request at the ASGI level, for a client that reads slowly, sends slowly or disconnects."""

    def __init__(self, app: FastAPI, method: str, path: str, *body: bytes, more: bool = False) -> None:
        self.sent: list[Message] = []
        self._arrived = asyncio.Event()
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        for piece in body:
            self._incoming.put_nowait({"type": "http.request", "body": piece, "more_body": True})
        if not more:
            self._incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {KEY}".encode())],
            "root_path": "",
        }
        self.task = asyncio.ensure_future(app(scope, self._incoming.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self._arrived.set()

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def until_sent(self, part: bytes) -> None:
        while part not in self.body:
            self._arrived.clear()
            await self._arrived.wait()

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent)

    @property
    def complete(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


def _with_key(given: Mapping[str, str] | Mapping[bytes, bytes] | None, key: str | None) -> httpx.Headers:
    headers = httpx.Headers(given)
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return headers


def make_gateway(**limits: Any) -> Gateway:
    cluster = MemoryCluster()
    log = LogLines()
    keys = {"default": SecretStr(KEY), "other": SecretStr(OTHER_KEY)}
    config = GatewayConfig(keys_by_tenant=keys, **limits)
    return Gateway(create_app(config, cluster=cluster, log=log), cluster, log)


@pytest.fixture
def gateway() -> Gateway:
    return make_gateway(max_body_bytes=4096, max_upload_bytes=4 * 1024 * 1024)
