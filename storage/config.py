"""The settings of the storage layer: small, frozen and picklable, passed to actors by value.

A boto3 client cannot be pickled, so every process builds its own client from these settings.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

MIB = 2**20

# Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html (the same on R2)
MIN_PART_BYTES = 5 * MIB
MAX_PART_BYTES = 5 * 1024 * MIB
MAX_PARTS = 10_000
MAX_URL_TTL_S = 7 * 86_400


_HOST_NAME = re.compile(r"(?=.{1,253}\.?$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?")


def bare_endpoint(value: str) -> str:
    """The origin of an S3 service, without a trailing slash. Raises ValueError for anything more than an origin."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http or https URL")
    if parts.username or parts.password or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ValueError("must be a scheme, a host and a port only")
    _ = parts.port  # raises ValueError if the port is not a number
    if not (_HOST_NAME.fullmatch(parts.hostname) or _is_address(parts.hostname)):
        raise ValueError("must have a host name of letters, digits, '-' and '.'")  # botocore accepts no other
    return value.rstrip("/")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


class _Frozen(BaseModel):
    # Values that fail validation are not repeated in the message: one of them may be a secret.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class BucketConfig(_Frozen):
    """The location of the bucket, and the keys that open it.

    An `endpoint_url` of None means Amazon's own endpoint of `region`; R2 calls its only region "auto". Plain http
    would carry archives in the clear, so beyond loopback it has to be allowed with `allow_http`.
    """

    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]$")]
    endpoint_url: Annotated[str, AfterValidator(bare_endpoint)] | None = None
    region: Annotated[str, Field(pattern=r"^[a-z0-9\-]{1,32}$")] = "auto"
    access_key_id: SecretStr
    secret_access_key: SecretStr
    allow_http: bool = False
    folder: Path | None = None
    """The folder of an embedded store on this machine, whose disk shows when it is full; None for other stores."""

    @model_validator(mode="after")
    def _related(self) -> BucketConfig:
        if not self.access_key_id.get_secret_value() or not self.secret_access_key.get_secret_value():
            raise ValueError("access_key_id and secret_access_key must not be empty")
        if self.endpoint_url is None:
            if self.region == "auto":
                raise ValueError("without an endpoint_url, region must name a region of Amazon's; \"auto\" is R2's")
            return self
        parts = urlsplit(self.endpoint_url)
        if parts.scheme == "http" and not self.allow_http and not _is_loopback(parts.hostname or ""):
            raise ValueError("http to another host sends archives in the clear; use https, or allow http on purpose")
        return self

    @property
    def host(self) -> str:
        """The endpoint's host and port, for messages."""
        return urlsplit(self.endpoint_url).netloc if self.endpoint_url else f"s3.{self.region}.amazonaws.com"


class TransferConfig(_Frozen):
    """The settings of transfers. `attempts` counts all tries of one part or one small request, the first included.

    A part is the unit that is sent again after a failure. A connection that is silent for `idle_timeout_s` is taken for
    dead, however long the whole transfer may last.
    """

    part_bytes: Annotated[int, Field(ge=MIN_PART_BYTES, le=MAX_PART_BYTES)] = 16 * MIB
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    attempts: Annotated[int, Field(ge=1, le=20)] = 5
    connect_timeout_s: Annotated[float, Field(gt=0, le=300)] = 5
    idle_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 30
    url_ttl_s: Annotated[int, Field(ge=1, le=MAX_URL_TTL_S)] = 300
    backoff_initial_s: Annotated[float, Field(gt=0, le=60)] = 0.2
    backoff_max_s: Annotated[float, Field(gt=0, le=300)] = 5

    def model_post_init(self, context: Any, /) -> None:
        if self.backoff_initial_s > self.backoff_max_s:
            raise ValueError("backoff_initial_s must not exceed backoff_max_s")

    def part_bytes_for(self, size_bytes: int) -> int:
        """The part size for an archive: as configured, or the least whole MiB that needs no more than 10,000 parts."""
        least = -(-size_bytes // MAX_PARTS)
        return max(self.part_bytes, -(-least // MIB) * MIB)
