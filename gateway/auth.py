"""Authentication: an API key decides the tenant."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from actors.errors import UnauthorizedError
from gateway.strangers import introduced

PUBLIC_PATHS = frozenset({"/health"})


class Authentication:
    """Passes a request on with its key's tenant in `scope["state"]["tenant"]`; raises UnauthorizedError without one.

    It compares every tenant's key, by digests of equal length, so that the time tells neither how much of a key was
    right nor whose key it resembled.
    """

    def __init__(self, app: ASGIApp, *, keys_by_tenant: Mapping[str, SecretStr]) -> None:
        self._app = app
        self._digests = {tenant: _digest(key.get_secret_value().encode()) for tenant, key in keys_by_tenant.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) not in PUBLIC_PATHS:
            scope["state"]["tenant"] = self._tenant(scope)
            introduced(scope["state"])
        await self._app(scope, receive, send)

    def _tenant(self, scope: Scope) -> str:
        values = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        scheme, _, key = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        presented = _digest(key.strip())
        found: str | None = None
        for tenant, digest in self._digests.items():
            if hmac.compare_digest(digest, presented):
                found = tenant
        if found is None or scheme.lower() != b"bearer":
            raise UnauthorizedError(
                "The request carries no valid API key.", hint="Send it as `Authorization: Bearer <key>`."
            )
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
