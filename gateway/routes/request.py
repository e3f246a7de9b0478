"""Parameters that the routes share: the sandbox or the service of a request, paths and pages."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl, unquote_to_bytes

from fastapi import Depends, Path, Query, Request, Security
from fastapi.security import HTTPBearer

from actors.models import (
    MAX_CURSOR_LENGTH,
    MAX_PAGE,
    SANDBOX_ID_SCHEMA,
    Model,
    SandboxId,
    exclude_patterns,
    validated,
    writable_path,
)
from gateway.cluster import Cluster, SandboxPort, ServicePort
from gateway.config import GatewayConfig
from gateway.errors import NotUnderstoodError, RouteNotFoundError

KEY_REQUIRED = Security(HTTPBearer(auto_error=False, description="The API key; it decides the tenant."))
"""The key's documentation in OpenAPI; `gateway.auth` checks the key, before routing."""

DEFAULT_DIR = "/workspace"


class _Named(Model):
    id: SandboxId


def config_of(request: Request) -> GatewayConfig:
    """The gateway's configuration."""
    config: GatewayConfig = request.app.state.config
    return config


async def _box(
    request: Request, id: Annotated[str, Path(description="The sandbox's name.", json_schema_extra=SANDBOX_ID_SCHEMA)]
) -> SandboxPort:
    cluster: Cluster = request.app.state.cluster
    return cluster.sandbox(request.state.tenant, validated(_Named, {"id": id}).id)


async def _service(request: Request) -> ServicePort:
    cluster: Cluster = request.app.state.cluster
    return cluster.service(request.state.tenant)


async def _file_path(
    request: Request, path: Annotated[str, Path(description="Absolute, without its first '/'.")]
) -> str:
    """Reads the path from the request's raw target, to keep names that are not UTF-8 (as surrogate escapes)."""
    _, marker, raw = request.scope["raw_path"].partition(b"/file/")
    if not marker:  # the route matched an encoded "file"
        raise RouteNotFoundError("There is no such route.")
    return writable_path("/" + unquote_to_bytes(raw).decode("utf-8", "surrogateescape"))


async def _query_path(
    request: Request, path: Annotated[str, Query(description="The directory to list.")] = DEFAULT_DIR
) -> str:
    return writable_path(_values(request, "path", DEFAULT_DIR)[-1])


async def _backup_path(
    request: Request, path: Annotated[str, Query(description="Absolute within the backup.")] = "/"
) -> str:
    return _values(request, "path", "/")[-1]


async def _excludes(
    request: Request,
    excludes: Annotated[
        list[str],
        Query(
            default_factory=list,
            description="What to leave out: patterns as in a .gitignore file, separated by commas. Repeatable.",
        ),
    ],
) -> list[str]:
    given = [pattern for value in _values(request, "excludes") for pattern in value.split(",") if pattern]
    return exclude_patterns(given, NotUnderstoodError)


def _values(request: Request, name: str, *default: str) -> list[str]:
    """Reads the values of a query parameter from the raw query, to keep bytes that are not UTF-8."""
    query = request.scope["query_string"].decode("latin-1")
    given = [value for key, value in parse_qsl(query, keep_blank_values=True, errors="surrogateescape") if key == name]
    return given or list(default)


Box = Annotated[SandboxPort, Depends(_box)]
Service = Annotated[ServicePort, Depends(_service)]
FilePath = Annotated[str, Depends(_file_path)]
Excludes = Annotated[list[str], Depends(_excludes)]
DirectoryPath = Annotated[str, Depends(_query_path)]
BackupPath = Annotated[str, Depends(_backup_path)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="The most rows of a page.")]
Cursor = Annotated[str | None, Query(max_length=MAX_CURSOR_LENGTH, description="The `cursor` of the page before.")]
