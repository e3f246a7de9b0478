"""Readers of request bodies, with limits of size and time, whether or not the client declares a length."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from actors.errors import InvalidBackupConfigError, InvalidRequestError, RequestTooLargeError
from actors.models import invalid
from gateway.config import GatewayConfig
from gateway.errors import MalformedBodyError, RequestTimeoutError
from gateway.raw_names import with_raw_names

M = TypeVar("M", bound=BaseModel)
BINARY = "application/octet-stream"
"""The media type of raw bytes."""


async def pieces(
    request: Request,
    *,
    limit_bytes: int,
    idle_s: float,
    total_s: float,
    on_pause: Callable[[], Awaitable[bool]] | None = None,
) -> AsyncIterator[bytes]:
    """Yields the body's pieces as they arrive.

    With `on_pause`, the body may pause for longer than `idle_s`: this is called then, and ends the body by False.

    Raises:
        RequestTooLargeError: the body is, or is declared to be, longer than `limit_bytes`.
        RequestTimeoutError: nothing came for `idle_s`, or the whole took longer than `total_s`.
        ClientDisconnect: the client is gone.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit_bytes):
        raise _too_large(limit_bytes)
    received = 0
    more = True
    loop = asyncio.get_running_loop()
    deadline = loop.time() + total_s
    while more:
        try:
            async with asyncio.timeout_at(min(loop.time() + idle_s, deadline)):
                message = await request.receive()
        except TimeoutError:
            if loop.time() < deadline and on_pause is not None:
                if await on_pause():
                    continue
                return
            if loop.time() < deadline:
                sentence, limit = "The request's body stopped coming.", {"idle_s": idle_s}
            else:
                sentence, limit = "The request's body took too long to come.", {"total_s": total_s}
            raise RequestTimeoutError(sentence, context={"received_bytes": received, **limit}) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        received += len(piece)
        if received > limit_bytes:
            raise _too_large(limit_bytes)
        if piece:
            yield piece
        more = message.get("more_body", False)


async def in_blocks(source: AsyncIterator[bytes], block_bytes: int) -> AsyncIterator[bytes]:
    """Yields the same bytes in blocks of one size; the last may be shorter."""
    buffer = bytearray()
    async for piece in source:
        buffer += piece
        while len(buffer) >= block_bytes:
            yield bytes(buffer[:block_bytes])
            del buffer[:block_bytes]
    if buffer:
        yield bytes(buffer)


async def parsed(
    request: Request,
    model: type[M],
    error: type[InvalidRequestError] = InvalidRequestError,
    *,
    empty: M | None = None,
) -> M:
    """Reads the JSON body as a model.

    Args:
        request: the request; its whole body is read here.
        model: the model that the body must match strictly.
        error: the error for JSON that does not match the model. If it is InvalidBackupConfigError, a body that is no
            JSON gets it too.
        empty: the value for an empty body; without it, an empty body is an error.
    """
    config: GatewayConfig = request.app.state.config
    body = bytearray()
    limit_bytes, idle_s, total_s = config.max_body_bytes, config.body_idle_s, config.body_total_s
    async for piece in pieces(request, limit_bytes=limit_bytes, idle_s=idle_s, total_s=total_s):
        body += piece
    if not body and empty is not None:
        return empty
    malformed = InvalidBackupConfigError if error is InvalidBackupConfigError else MalformedBodyError
    try:
        names = with_raw_names(bytes(body))
        if names is None:
            from_json(bytes(body), allow_inf_nan=False)
    except (ValueError, RecursionError):
        raise malformed("The body is not a JSON document.", hint="NaN and Infinity are not JSON either.") from None
    if (repeated := _repeated_field(bytes(body))) is not None:
        raise malformed(f"The body has the field {repeated[:200]!r} more than once.", context={"field": repeated[:200]})
    try:
        return model.model_validate_json(bytes(body)) if names is None else model.model_validate(names)
    except ValidationError as e:
        raise invalid(e, error) from None


def _repeated_field(document: bytes) -> str | None:
    """The first name that occurs twice in an object of a JSON document: all but one value would be dropped."""
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        repeated.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)

    json.loads(document, object_pairs_hook=note, parse_int=len)  # a number may have more digits than int() takes
    return repeated[0] if repeated else None


def describes(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body `parsed` reads."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    return _json_body(_inlined(schema, definitions), required=required)


def describes_bytes(media_type: str) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is raw bytes."""
    schema = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _json_body(schema: Any, *, required: bool) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if reference is not None:
        target = definitions[reference.removeprefix("#/$defs/")]
        return _inlined({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items()}


def _too_large(limit_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError("The request's body is too large.", context={"limit_bytes": limit_bytes})
