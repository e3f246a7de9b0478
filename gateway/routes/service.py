"""Routes of the service itself: health, readiness, metrics and API documentation."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html

from actors.errors import HoldfastError, ServiceUnavailableError
from actors.models import Model
from gateway.answers import answer, error_answer
from gateway.metrics import HttpMetrics
from gateway.routes.request import KEY_REQUIRED, Service

READY_LIMIT_S = 5.0
DOCUMENT_PATH = "/openapi.json"

router = APIRouter(tags=["service"])


class Health(Model):
    """The process answers."""

    status: str = "ok"


class Ready(Model):
    """A call would succeed: the cluster's control store, its service and the bucket answer."""

    ready: bool = True
    warnings: tuple[str, ...] | None = None
    """A sentence for each full disk, on which some calls would fail; absent if there is none."""


@router.get("/health", response_model=Health)
async def health() -> Response:
    """Tells that this process answers. The only route that needs no key."""
    return answer(Health())


@router.get("/ready", response_model=Ready, dependencies=[KEY_REQUIRED])
async def ready(request: Request, service: Service) -> Response:
    """Tells whether a call would succeed: 200, or 503 and why."""
    try:
        async with asyncio.timeout(READY_LIMIT_S):
            warnings = await service.ready()
    except TimeoutError:
        late = ServiceUnavailableError("The service did not answer in time.", context={"limit_s": READY_LIMIT_S})
        return error_answer(late, request.scope)
    except HoldfastError as e:
        return error_answer(e, request.scope, status=503)
    return answer(Ready(warnings=warnings or None))


@router.get("/metrics", response_class=Response, dependencies=[KEY_REQUIRED])
async def metrics(request: Request, service: Service) -> Response:
    """For Prometheus: this gateway's requests, and what the actors of the whole cluster do. Needs no cluster."""
    http_metrics: HttpMetrics = request.app.state.metrics
    await http_metrics.cluster.refresh(service.metrics)
    return http_metrics.exposition()


@router.get(DOCUMENT_PATH, include_in_schema=False, dependencies=[KEY_REQUIRED])
async def openapi(request: Request) -> Response:
    """The description of all routes, and where they begin if something before the gateway has put them elsewhere."""
    root = _root_path(request)
    return answer(request.app.openapi() | ({"servers": [{"url": root}]} if root else {}))


@router.get("/docs", include_in_schema=False, dependencies=[KEY_REQUIRED])
async def docs(request: Request) -> Response:
    """The same for people."""
    return get_swagger_ui_html(
        openapi_url=_root_path(request) + DOCUMENT_PATH, title=f"{request.app.title} - Swagger UI"
    )


def _root_path(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")
