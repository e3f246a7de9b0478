"""The door to boto3: makes its clients, and turns its exceptions into ours. Loaded at the first request.

Requests are signed with SigV4 and address the bucket in the path (the bucket's name in the host's would need a
wildcard certificate at every endpoint). The process's environment and ~/.aws are ignored: only the
`BucketConfig` counts.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import boto3
import botocore.session
import tenacity
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from storage.attempts import pauses
from storage.config import BucketConfig, TransferConfig
from storage.errors import StoreUnavailableError, TornReadError
from storage.s3_model import S3ModelFiles
from storage.time_limit import MOMENTS_S, left_s
from storage.translate import client_error, raised

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_POOL = 16
BROKEN_OFF = (IncompleteReadError, ResponseStreamingError)
"""Exceptions of reading a body that ends too early."""
T = TypeVar("T")
_session_lock = threading.Lock()


def _keep_secrets_out_of_the_log() -> None:
    """Raises loggers to INFO. At DEBUG botocore logs canonical requests, signatures and URLs, urllib3 logs URLs."""
    for name in ("boto3", "botocore", "urllib3"):
        logger = logging.getLogger(name)
        if logger.level < logging.INFO:
            logger.setLevel(logging.INFO)


@functools.cache
def _session() -> boto3.Session:
    """The one session of the process, without profile and ~/.aws.

    Reading botocore's model of S3 takes 90 to 140 ms once, each client of the same session 5 ms (own measurement).
    """
    nowhere = {"profile": None, "config_file": os.devnull, "credentials_file": os.devnull}
    core = botocore.session.Session(session_vars={name: (None, None, value, None) for name, value in nowhere.items()})
    core.get_component("data_loader").file_loader = S3ModelFiles()
    return boto3.Session(botocore_session=core)


def load_model() -> None:
    """Reads botocore's model of S3, so that the first store of this process is made in milliseconds."""
    with _session_lock:
        _session().client("s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")


def open_hasty_client(config: BucketConfig, transfer: TransferConfig) -> S3Client:
    """A client for requests with a time limit (`storage.time_limit`): it waits `MOMENTS_S` at most for each answer.

    No attempt begins after the limit.
    """
    limits = {
        "connect_timeout_s": min(MOMENTS_S, transfer.connect_timeout_s),
        "idle_timeout_s": min(MOMENTS_S, transfer.idle_timeout_s),
    }
    client = open_client(config, transfer.model_copy(update=limits))
    client.meta.events.register("before-send.s3", functools.partial(_refuse_late, config.bucket))
    return client


def _refuse_late(bucket: str, **_: object) -> None:
    if left_s() == 0:
        raise StoreUnavailableError("send", bucket=bucket, detail="no answer in time")


def open_client(config: BucketConfig, transfer: TransferConfig) -> S3Client:
    """A client of the bucket's service. Thread-safe."""
    _keep_secrets_out_of_the_log()
    settings = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        connect_timeout=transfer.connect_timeout_s,
        read_timeout=transfer.idle_timeout_s,
        # "standard" retries throttling, 5xx and connection errors with exponential back-off and jitter.
        retries={"mode": "standard", "total_max_attempts": transfer.attempts},
        max_pool_connections=_POOL,
        # Not every S3 service takes the CRC checksums that botocore adds by default; what matters carries an MD5.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies={},
    )
    with _session_lock:  # threads may share clients, but not make them at once
        return _session().client(
            "s3",
            # Always given, since botocore reads AWS_ENDPOINT_URL otherwise.
            endpoint_url=config.endpoint_url or f"https://{config.host}",
            region_name=config.region,
            aws_access_key_id=config.access_key_id.get_secret_value(),
            aws_secret_access_key=config.secret_access_key.get_secret_value(),
            config=settings,
        )


@contextmanager
def translated(operation: str, *, bucket: str, key: str | None, detail: str) -> Iterator[None]:
    """Raises errors of a request in the block as a `StorageError`."""
    try:
        yield
    except ClientError as e:
        raise client_error(e, operation, bucket=bucket, key=key, detail=detail) from None
    except ResponseParserError:  # a proxy's page instead of an answer of S3
        raise StoreUnavailableError(operation, bucket=bucket, key=key, detail=f"no answer of S3 {detail}") from None
    except (BotoCoreError, HTTPClientError, BotoConnectionError) as e:
        # The text of these exceptions holds the URL; their name does not.
        raise raised(e)(operation, bucket=bucket, key=key, detail=f"{type(e).__name__} {detail}") from None


def until_whole(read: Callable[[], T], transfer: TransferConfig) -> T:
    """Repeats `read` while it raises TornReadError, as often as a request that fails.

    botocore repeats a request that fails, but not one that is answered with a wrong body. rclone answers so when the
    object is replaced while it is read. Beside a writer that did nothing else, 6 of 1,000 bodies ended before the
    declared length, and 7 of 1,000 had that length and were those of another state (own measurements).
    """
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(transfer.attempts),
        wait=pauses(transfer),
        retry=tenacity.retry_if_exception_type(TornReadError),
        reraise=True,
    )
    return retrying(read)
