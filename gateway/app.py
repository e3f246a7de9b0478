"""The factory of the gateway's application: every app has its own configuration, metrics and cluster.

A request passes Telemetry (id, log, metrics), RecoveryNotices (the header that announces a recovery), ErrorBoundary
(every error in one shape), Authentication (the key decides the tenant), Shares (each tenant and sandbox has a bounded
share of the requests) and then the routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from actors.errors import InvalidRequestError
from gateway.answers import error_answer
from gateway.auth import Authentication
from gateway.boundary import ErrorBoundary, answer_http_exception
from gateway.cluster import Cluster, RayCluster
from gateway.config import GatewayConfig
from gateway.errors import ErrorDocument
from gateway.metrics import HttpMetrics
from gateway.recovery import RecoveryNotices
from gateway.routes import backups, commands, files, retention, sandboxes, service
from gateway.routes.request import KEY_REQUIRED
from gateway.routes.understood import UNDERSTOOD
from gateway.shares import Shares
from gateway.telemetry import Telemetry, json_log

CLUSTER_THREADS = 128
"""Number of threads. Finding an actor or waiting for a stream's first item blocks one; asyncio's limit is cores + 4."""


class ClusterThreads(ThreadPoolExecutor):
    """A thread pool that ends without waiting: a thread may wait a minute for a cluster that is gone."""

    def __init__(self) -> None:
        super().__init__(CLUSTER_THREADS, "cluster")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def create_app(config: GatewayConfig, *, cluster: Cluster | None = None, log: Any = None) -> FastAPI:
    """Creates a gateway.

    Args:
        config: keys and limits.
        cluster: the cluster of the sandboxes; by default the Ray cluster of this process.
        log: a structlog logger for the access log; by default JSON lines on stderr.
    """
    cluster = cluster or RayCluster()
    log = log or json_log()
    metrics = HttpMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(ClusterThreads())
        cluster.connect()
        yield

    app = FastAPI(
        title="Holdfast",
        summary="Durable sandboxes on Ray: back a directory up, restore it as a copy-on-write overlay.",
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=[
            Middleware(Telemetry, log=log, metrics=metrics),
            Middleware(RecoveryNotices),
            Middleware(ErrorBoundary, log=log),
            Middleware(Authentication, keys_by_tenant=config.keys_by_tenant),
            Middleware(Shares, max_requests=config.max_requests, tenants=len(config.keys_by_tenant)),
        ],
        exception_handlers={HTTPException: answer_http_exception, RequestValidationError: _answer_bad_parameter},
        responses={"default": {"model": ErrorDocument, "description": "An error"}},
    )
    app.state.config = config
    app.state.cluster = cluster
    app.state.metrics = metrics
    app.include_router(service.router, dependencies=[UNDERSTOOD])
    for module in (sandboxes, commands, files, backups, retention):
        app.include_router(module.router, dependencies=[KEY_REQUIRED, UNDERSTOOD])
    return app


async def _answer_bad_parameter(request: Request, e: Exception) -> Response:
    assert isinstance(e, RequestValidationError)
    fields = {str(line["loc"][-1]): line["msg"] for line in e.errors()}
    sentence = "; ".join(f"{name}: {message}" for name, message in fields.items())
    return error_answer(InvalidRequestError(f"Invalid request: {sentence}.", context={"fields": fields}), request.scope)
