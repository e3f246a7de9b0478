"""Writes a file with the embedded store's address and keys, for S3 clients such as the AWS command line and boto3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.embedded.secrets import write_private
from storage.config import BucketConfig

STORE_ENV = "store.env"
_REGION = "us-east-1"
"""The region for signatures; rclone accepts any, and some clients need one."""


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """The store's bucket and endpoint, and the file with a client's environment variables, keys included."""

    bucket: str
    endpoint_url: str
    file: Path


@contextmanager
def store_access_file(file: Path, bucket: BucketConfig) -> Iterator[StoreAccess]:
    """Writes a client's environment variables to `file`, which only its owner can read; removes it after the block.

    Source: the names are those of the AWS SDKs' reference guide, "Environment variables support". Newer SDKs add
    checksums in trailers by default, which not every store accepts: a variable limits them to required checksums.
    """
    endpoint_url = bucket.endpoint_url or ""
    variables = {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": bucket.access_key_id.get_secret_value(),
        "AWS_SECRET_ACCESS_KEY": bucket.secret_access_key.get_secret_value(),
        "AWS_DEFAULT_REGION": _REGION,
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }
    write_private(file, "".join(f"{name}={value}\n" for name, value in variables.items()))
    try:
        yield StoreAccess(bucket.bucket, endpoint_url, file)
    finally:
        file.unlink(missing_ok=True)
