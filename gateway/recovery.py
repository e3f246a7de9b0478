"""Middleware that reports a sandbox's recovery to its first callers, in a header of the answer.

`lost`: something that was in no backup is gone, or a backup could not be restored. `restored`: directories are as they
were at their last backups. GET /v1/sandbox/{id} has the details.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.notices import Notice, collecting

HEADER = "Holdfast-Recovery"
LOST, RESTORED = "lost", "restored"


class RecoveryNotices:
    """Adds the header to every answer until one has delivered it for sure: one without an error, sent to its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        carried: list[Notice] = []

        async def noticed(message: Message) -> None:
            if message["type"] == "http.response.start" and heard:
                is_lost = any(notice.recovery.lacks_anything for notice in heard)
                MutableHeaders(scope=message)[HEADER] = LOST if is_lost else RESTORED
                if message["status"] < 400:
                    carried.extend(heard)
            await send(message)

        with collecting() as heard:
            await self._app(scope, receive, noticed)
        for notice in carried:
            notice.acknowledge()
