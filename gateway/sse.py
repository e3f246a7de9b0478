"""Encodes a command's output as Server-Sent Events.

Source: the WHATWG HTML standard, "Server-sent events". Output is sent in base64, so it never holds a line break.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator

from actors.errors import HoldfastError
from actors.models import ExecEvent, Exit, Output, Started
from gateway.streaming import Source

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
KEEP_ALIVE = b": keep-alive\n\n"


def frame(event: str, data: str) -> bytes:
    """The bytes of one event. `data` must not contain line breaks."""
    return f"event: {event}\ndata: {data}\n\n".encode("ascii")


def encoded(event: Started | ExecEvent) -> bytes:
    """The frame of the beginning, of a piece of output, or of the exit."""
    if isinstance(event, Started):
        return frame("started", json.dumps({"command_id": event.command_id}))
    if isinstance(event, Exit):
        return frame("exit", json.dumps({"exit_code": event.exit_code}))
    return frame(event.stream, base64.b64encode(event.data).decode("ascii"))


def failed(error: HoldfastError) -> bytes:
    """The frame of an error, which is the last event of its stream."""
    return frame("error", json.dumps({"error": error.message, "code": error.code}))


async def frames(source: Source[Started | ExecEvent], *, keep_alive_s: float) -> AsyncGenerator[bytes, None]:
    """The whole stream: output as it comes, a comment in every silence, and `exit` or `error` last."""
    while True:
        if not await source.wait(keep_alive_s):
            yield KEEP_ALIVE
            continue
        try:
            event = await source.take()
        except HoldfastError as e:
            yield failed(e)
            return
        if event is None:
            return
        if not isinstance(event, Output) or event.data:
            yield encoded(event)
