"""JSON answers: models and errors.

File names may hold bytes that are not UTF-8, as surrogate escapes. They travel as \\udcXX, which only an ASCII encoder
writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Scope

from actors.errors import HoldfastError, UnauthorizedError
from gateway.errors import document
from gateway.status import status_of

RETRY_AFTER_S = 2
NO_CONTENT = 204


def answer(value: BaseModel | Mapping[str, Any] | None, *, status: int = 200) -> Response:
    """The answer with one JSON document. Fields without a value are left out."""
    return _json(value, status=status, headers={})


def done() -> Response:
    """The answer without a body."""
    return Response(status_code=NO_CONTENT)


def error_answer(
    error: HoldfastError, scope: Scope, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer for an error: its document, with the headers that its kind needs."""
    extra = dict(headers or {})
    if error.may_be_retried:
        extra["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, UnauthorizedError):
        extra["WWW-Authenticate"] = 'Bearer realm="holdfast"'
    request_id = scope.get("state", {}).get("request_id", "")
    return _json(document(error, request_id), status=status or status_of(error), headers=extra)


def _json(value: Any, *, status: int, headers: Mapping[str, str]) -> Response:
    plain = value.model_dump(mode="json", exclude_none=True) if isinstance(value, BaseModel) else value
    body = json.dumps(plain, separators=(",", ":"), default=str).encode("ascii")
    return Response(body, status_code=status, headers=dict(headers), media_type="application/json")
