"""Middleware that gives every request an id, a log line and its place in the metrics. Calls carry the id to actors."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.logs import log_stream
from actors.request_ids import serving
from gateway.metrics import HttpMetrics

CLIENT_WENT_AWAY = 499
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def json_log() -> Any:
    """A logger of JSON lines on stderr, in ASCII so that no value can forge a line or control a terminal."""
    return structlog.wrap_logger(
        structlog.WriteLogger(log_stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )


class Telemetry:
    """The outermost middleware. Logs the route's template, but no paths, queries, bodies or headers."""

    def __init__(self, app: ASGIApp, *, log: Any, metrics: HttpMetrics) -> None:
        self._app = app
        self._log = log
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = CLIENT_WENT_AWAY
        received = sent = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)
            sent += len(message.get("body", b""))

        began = time.perf_counter()
        with self._metrics.in_flight.track_inprogress(), serving(request_id):
            try:
                await self._app(scope, counted_receive, counted_send)
            finally:
                duration_s = time.perf_counter() - began
                route = getattr(scope.get("route"), "path", "unmatched")
                self._metrics.observe(
                    route, scope["method"], status, duration_s=duration_s, received_bytes=received, sent_bytes=sent
                )
                self._log.info(
                    "request",
                    request_id=request_id,
                    method=scope["method"][:16],
                    route=route,
                    status=status,
                    duration_ms=round(duration_s * 1000, 1),
                )


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
