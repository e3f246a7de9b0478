"""The gateway as a Ray Serve application: the `import_path` of a Serve config is `gateway.serve_app:application`.

The application holds only the name of `replica_app`. Each replica calls that function where it runs, and reads the keys
and limits from its own environment: they are in no Serve config, no pickle and no log. A replica keeps no state, so
there may be any number of them. The first one starts the cluster's service, as `holdfast serve --address` does.

Only this module and `gateway.embedded.ray_head` import Ray in the gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context

from fastapi import FastAPI
from ray import serve
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.errors import InvalidRequestError
from actors.settings import read_settings, take_secrets_out_of_the_environment
from gateway.app import create_app
from gateway.config import GatewayConfig
from gateway.shared_service import shared_service, start_service

MAX_REQUESTS = 1024
"""Number of requests at once in one replica. Five commands whose output is being read would use up Serve's own 5."""
ENDING_S = 30.0
"""Time limit for a replica that is being replaced to finish its requests."""


def application(args: Mapping[str, str]) -> serve.Application:
    """Builds the application, without reading a setting or starting anything.

    Raises:
        InvalidRequestError: `args` are given; they would be stored in the cluster and shown on its dashboard.
    """
    if args:
        raise InvalidRequestError(
            f"The gateway takes no arguments from a Serve config: {', '.join(sorted(args))}.",
            hint="Set the environment of the nodes that its replicas run on.",
        )
    gateway = serve.deployment(
        name="gateway",
        num_replicas=2,
        max_ongoing_requests=MAX_REQUESTS,
        graceful_shutdown_timeout_s=ENDING_S,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},  # it would name paths; the gateway has a log of its own
    )
    return gateway(serve.ingress(replica_app)()).bind()


def replica_app() -> FastAPI:
    """Builds the gateway of this replica, once; starts the cluster's service unless that runs.

    Raises:
        HoldfastError: a setting is missing or wrong, or the service or its bucket does not answer. Serve tries again,
            and shows the error as the deployment's status.
    """
    read = read_settings()
    service = shared_service(read)
    take_secrets_out_of_the_environment()
    # In a thread of its own: this one runs the replica's event loop.
    with ThreadPoolExecutor(1, "start-service") as thread:
        thread.submit(start_service, service.config).result()
    app = create_app(GatewayConfig.of(read, service.keys_by_tenant, max_requests=MAX_REQUESTS))
    app.add_middleware(_OneRequestId)
    app.add_middleware(_ContextOfItsOwn)
    return app


class _ContextOfItsOwn:
    """Serves each request in an empty context, so that Ray does not count its calls as children of Serve's task.

    When a client goes away, Serve cancels its task, and Ray cancels the children that still wait to be executed. The
    call that stops the client's command would be one of them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def serve_request() -> None:
            await self._app(scope, receive, send)

        await asyncio.create_task(serve_request(), context=Context())


class _OneRequestId:
    """Leaves the request's id to Serve's proxy, which assigns it and adds it to the answer's headers itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id")

        async def once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("x-request-id") == given:
                    del headers["x-request-id"]
            await send(message)

        await self._app(scope, receive, once)
