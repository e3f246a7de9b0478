"""The route that runs commands."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from actors.models import ExecRequest
from gateway import sse
from gateway.body import describes, parsed
from gateway.errors import stopping
from gateway.routes.request import Box, config_of
from gateway.streaming import Source, StreamedAnswer

router = APIRouter(prefix="/v1/sandbox", tags=["commands"])


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
