"""A bounded share of a gateway's requests for each sandbox, and for each tenant where there are several.

A request lasts as long as its client takes to send the body and to read the answer. So without shares, one client with
a key could hold every connection, with bodies that stop arriving or answers that it does not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from actors.errors import TooManyCallsError

_SANDBOXES = "/v1/sandbox/"
_OF_A_SANDBOX, _OF_A_TENANT = 4, 2
"""Divisors: one sandbox has a quarter, enough to fill each lane of its actor; one tenant of several has half."""


class Shares:
    """Refuses requests beyond the share of their sandbox or tenant, before reading their bodies. For one event loop."""

    def __init__(self, app: ASGIApp, *, max_requests: int, tenants: int) -> None:
        self._app = app
        self._of_a_sandbox = max_requests // _OF_A_SANDBOX
        self._of_a_tenant = max_requests // _OF_A_TENANT if tenants > 1 else max_requests
        self._served: Counter[tuple[str, ...]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant = scope["state"].get("tenant") if scope["type"] == "http" else None
        if tenant is None:
            await self._app(scope, receive, send)
            return
        with self._one_of((tenant,), self._of_a_tenant, "tenant"):
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if not path.startswith(_SANDBOXES):
                await self._app(scope, receive, send)
                return
            sandbox = path.removeprefix(_SANDBOXES).partition("/")[0]
            with self._one_of((tenant, sandbox), self._of_a_sandbox, "sandbox"):
                await self._app(scope, receive, send)

    @contextmanager
    def _one_of(self, whose: tuple[str, ...], most: int, kind: str) -> Iterator[None]:
        """Counts one more request within the block. Raises TooManyCallsError."""
        if self._served[whose] >= most:
            raise TooManyCallsError(
                f"This gateway serves as many requests of this {kind} as it may.",
                hint="Send fewer at once, or try again when some have ended.",
                context={"limit": most, "outcome": "not_executed"},
            )
        self._served[whose] += 1
        try:
            yield
        finally:
            self._served[whose] -= 1
            if not self._served[whose]:
                del self._served[whose]
