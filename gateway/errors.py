"""The errors that only HTTP knows, and the document that answers every error.

HoldfastError
├── RouteNotFoundError          no such path
├── MethodNotAllowedError       the path has other methods
├── RequestTimeoutError         the body stopped coming, or came too slowly
└── InvalidRequestError
    ├── MalformedBodyError      the body is not JSON at all
    └── NotUnderstoodError      it asks for something that the route does not know
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from actors.errors import RETRYABLE, HoldfastError, InvalidRequestError, ServiceUnavailableError
from actors.models import Model

_SAFE_METHODS = ("GET", "HEAD")


class RouteNotFoundError(HoldfastError):
    """The service has no such path."""

    code = "NOT_FOUND"


class MethodNotAllowedError(HoldfastError):
    """The path exists, but not for this method."""

    code = "METHOD_NOT_ALLOWED"


class RequestTimeoutError(HoldfastError):
    """The headers or the body of a request stopped coming, or came too slowly; nothing was changed.

    A JSON body may take a minute, a file or an archive six hours.
    """

    code = "REQUEST_TIMEOUT"


class MalformedBodyError(InvalidRequestError):
    """The body is not a JSON document; nothing was changed."""


class NotUnderstoodError(InvalidRequestError):
    """The request asks for something that its route does not know; nothing was changed."""


def stopping(method: str) -> ServiceUnavailableError:
    """The error for a request that was still running when the service stopped."""
    context = {"outcome": "unknown", RETRYABLE: method in _SAFE_METHODS}
    hint = None if method in _SAFE_METHODS else "Look at the sandbox's state before you repeat the call."
    return ServiceUnavailableError("The service is stopping.", hint=hint, context=context)


class ErrorDocument(Model):
    """The body of every answer that is an error."""

    code: str
    error: str
    context: Annotated[dict[str, Any], Field(default_factory=dict)]
    hint: str | None = None
    request_id: str


def document(error: HoldfastError, request_id: str) -> ErrorDocument:
    """The error's document."""
    return ErrorDocument(
        code=error.code, error=error.message, context=error.context, hint=error.hint, request_id=request_id
    )
