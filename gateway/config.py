"""The configuration of the gateway; passed in by value, never read from the environment here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from actors.models import SandboxId
from actors.settings import Settings
from gateway.capacity import most_connections


class GatewayConfig(BaseModel):
    """The gateway's settings.

    Attributes:
        keys_by_tenant: the API key of each tenant. The key of a request decides whose sandboxes it sees.
        max_body_bytes: the largest JSON body.
        max_upload_bytes: the largest file or tar archive that is sent into a sandbox.
        body_idle_s: how long a body may stop coming before the request is given up.
        body_total_s: how long a JSON body may take to come as a whole.
        upload_total_s: the same of a file or a tar archive.
        keep_alive_s: how long an event stream may be silent before a comment is sent to keep proxies from cutting it.
        max_requests: how many requests are served at once, of which each sandbox and tenant has a share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys_by_tenant: Annotated[dict[SandboxId, SecretStr], Field(min_length=1)]
    max_body_bytes: Annotated[int, Field(gt=0)] = 1024**2
    max_upload_bytes: Annotated[int, Field(gt=0)] = 16 * 1024**3
    body_idle_s: Annotated[float, Field(gt=0)] = 30.0
    body_total_s: Annotated[float, Field(gt=0)] = 60.0
    upload_total_s: Annotated[float, Field(gt=0)] = 6 * 3600.0
    keep_alive_s: Annotated[float, Field(gt=0)] = 15.0
    max_requests: Annotated[int, Field(gt=0)] = Field(default_factory=most_connections)

    @classmethod
    def of(
        cls, settings: Settings, keys_by_tenant: Mapping[str, SecretStr], *, max_requests: int | None = None
    ) -> Self:
        """The gateway's part of the settings. The keys come beside them: a machine may have made its own."""
        return cls(
            max_requests=max_requests or most_connections(),
            keys_by_tenant=dict(keys_by_tenant),
            max_body_bytes=settings.max_body_bytes,
            max_upload_bytes=settings.max_upload_bytes,
        )
