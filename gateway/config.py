"""The configuration of the gateway. It is passed in by value; this module does not read the environment."""

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
        keys_by_tenant: the API key of each tenant. A request's key decides which tenant's sandboxes it sees.
        max_body_bytes: the largest JSON body.
        max_upload_bytes: the largest file or tar archive that is sent into a sandbox.
        body_idle_s: time limit for a pause in a body, after which the request fails.
        body_total_s: time limit for a whole JSON body.
        upload_total_s: time limit for a whole file or tar archive.
        keep_alive_s: longest silence of an event stream. Then a comment is sent, so that proxies do not cut the stream.
        max_requests: number of requests served at once; each sandbox and tenant has a share of it.
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
        """The gateway's part of the settings. The keys are separate, since a machine may have made its own."""
        return cls(
            max_requests=max_requests or most_connections(),
            keys_by_tenant=dict(keys_by_tenant),
            max_body_bytes=settings.max_body_bytes,
            max_upload_bytes=settings.max_upload_bytes,
        )
