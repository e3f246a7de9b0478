"""The service of a cluster that several gateways share: its settings, and its start by the first gateway.

Used by `holdfast serve --address` and by the replicas under Ray Serve. All gateways of a cluster need the same
settings: those of the first one become the service's, and stay so until the cluster ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr

from actors.config import SandboxConfig
from actors.errors import HoldfastError, InvalidRequestError, ServiceUnavailableError
from actors.settings import Settings


@dataclass(frozen=True, slots=True)
class SharedService:
    """The shared settings, as a gateway reads them from its environment."""

    keys_by_tenant: dict[str, SecretStr]
    config: SandboxConfig
    bucket: str
    """The bucket's name."""


def shared_service(settings: Settings) -> SharedService:
    """The service that these settings describe. Raises InvalidRequestError, naming settings that a cluster lacks."""
    bucket, keys = settings.bucket(), settings.keys_by_tenant()
    missing = [
        *settings.missing_bucket_settings(),
        *([] if settings.signing_key else ["HOLDFAST_SIGNING_KEY"]),
        *([] if keys else ["SANDBOX_API_KEY"]),
    ]
    if bucket is None or not keys or settings.signing_key is None:
        raise InvalidRequestError(
            f"In a cluster every gateway needs the same bucket and keys: {', '.join(missing)} missing.",
            hint="Set the missing settings. On one machine `holdfast serve` without --address needs none. "
            "HOLDFAST_SIGNING_KEY is any long secret, such as `openssl rand -hex 32` prints: without it no backup that "
            "it has signed can be restored, so keep it. Backups that the bucket's secret key has signed stay readable.",
        )
    config = settings.sandbox_config(
        bucket=bucket,
        signing_key=settings.signing_key,
        old_signing_keys=settings.verifying_keys(reads_buckets_secret=True),
    )
    return SharedService(keys, config, bucket.bucket)


def start_service(config: SandboxConfig) -> None:
    """Starts the service in the cluster that this process has joined, unless it runs; returns once it answers.

    Raises:
        HoldfastError: the service or its bucket does not answer.
    """
    from actors.service import host as service_host

    try:
        service_host.start_service(config)
    except HoldfastError:
        raise
    except Exception as e:
        cause = getattr(e, "cause", None)
        if isinstance(cause, HoldfastError):
            raise cause from None
        raise ServiceUnavailableError("The service did not start.", context={"cause": type(e).__name__}) from e
