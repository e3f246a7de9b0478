"""The error boundary of a request: turns every exception raised below it into an error document."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.errors import HoldfastError, InternalError, InvalidRequestError
from gateway.answers import error_answer
from gateway.errors import MethodNotAllowedError, RouteNotFoundError, stopping

_METHODS = ("GET", "POST", "PUT", "DELETE")


class ErrorBoundary:
    """Answers errors. An error after the answer has begun cuts the connection: a short body must not look whole.

    A stopping server cancels requests that outlast its grace period. They are answered like failed ones.
    """

    def __init__(self, app: ASGIApp, *, log: Any) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            return
        except (Exception, asyncio.CancelledError) as e:
            error = self._named(e, scope)
            if begun:
                self._log.warning("answer cut short", request_id=scope["state"]["request_id"], code=error.code)
            else:
                await error_answer(error, scope)(scope, receive, send)

    def _named(self, e: Exception | asyncio.CancelledError, scope: Scope) -> HoldfastError:
        if isinstance(e, asyncio.CancelledError):
            return stopping(scope["method"])
        if isinstance(e, HoldfastError):
            return e
        self._log.error("unhandled error", request_id=scope["state"]["request_id"], exc_info=e)
        return InternalError("Something broke in the gateway.", hint="The service's log has it under the request's id.")


async def answer_http_exception(request: Request, e: Exception) -> Response:
    """Answers Starlette's own refusals (no such path, no such method) with our error documents."""
    assert isinstance(e, HTTPException)
    error: HoldfastError
    headers = e.headers
    if e.status_code == 404:
        error = RouteNotFoundError("There is nothing at this path.", hint="See /docs.")
    elif e.status_code == 405:
        error = MethodNotAllowedError("This path does not know this method.")
        headers = {"Allow": ", ".join(_methods(request))}
    else:
        error = InvalidRequestError("The request was refused.")
    return error_answer(error, request.scope, status=e.status_code, headers=headers)


def _methods(request: Request) -> list[str]:
    """The methods of a path. Starlette would name those of one route, but several routes may share a path."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    routes = request.app.router.routes
    return [
        method for method, scope in scopes.items() if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]
