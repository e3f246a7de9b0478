"""The routes that run commands and send them input."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from actors.models import ExecRequest, Model
from gateway import sse
from gateway.answers import answer
from gateway.body import BINARY, describes, describes_bytes, parsed, pieces
from gateway.errors import stopping
from gateway.routes.request import Box, config_of
from gateway.streaming import Source, StreamedAnswer

router = APIRouter(prefix="/v1/sandbox", tags=["commands"])


class InputSent(Model):
    """The input is sent. If `complete` is false, the command ended, or closed its input, before it had taken all."""

    ok: bool = True
    complete: bool


@router.post(
    "/{id}/exec",
    response_class=Response,
    openapi_extra=describes(ExecRequest),
    responses={200: {"description": "The command's output", "content": {sse.MEDIA_TYPE: {}}}},
)
async def exec_command(request: Request, box: Box) -> Response:
    """Runs a command and streams its output.

    Events: `stdout` and `stderr` (data: base64), and last either `exit` (data: {"exit_code"}) or `error`
    (data: {"error", "code"}). An error before any output is an HTTP error. Closing the connection stops the command.
    With `stdin_stream`, the first event is `started` (data: {"command_id"}): the command waits for its input.
    """
    keep_alive_s = config_of(request).keep_alive_s
    source = Source(box.exec(await parsed(request, ExecRequest)))
    await source.begin(request.receive, within_s=keep_alive_s)
    return StreamedAnswer(
        sse.frames(source, keep_alive_s=keep_alive_s),
        source,
        media_type=sse.MEDIA_TYPE,
        headers=sse.HEADERS,
        farewell=sse.failed(stopping(request.method)),
    )


@router.put("/{id}/exec/{command_id}/stdin", response_model=InputSent, openapi_extra=describes_bytes(BINARY))
async def send_input(
    request: Request, box: Box, command_id: Annotated[str, Path(description="From the event `started`.")]
) -> Response:
    """Sends the input of a command that was started with `stdin_stream`: the whole of it, in one request.

    The body is passed on as it comes, as fast as the command reads it, and may pause for as long as the command runs.
    Its end is the end of the input. A body that is cut off stops the command. Only one request can send the input.
    """
    config = config_of(request)
    writer = await box.command_input(command_id)
    is_wanted = True

    async def passed_on(piece: bytes = b"") -> bool:
        nonlocal is_wanted
        is_wanted = await writer.send(piece)
        return is_wanted

    limits = {"idle_s": config.body_idle_s, "total_s": config.upload_total_s}
    try:
        async for piece in pieces(request, limit_bytes=config.max_upload_bytes, on_pause=passed_on, **limits):
            if not await passed_on(piece):
                break
        if is_wanted:
            await writer.end()
    except BaseException:
        await asyncio.shield(writer.cut())
        raise
    return answer(InputSent(complete=is_wanted))
