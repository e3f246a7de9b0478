"""The one place that translates answers of S3, and exceptions of botocore and httpx, into our errors.

An answer is translated by its error code, and by its HTTP status if the code is unknown. An exception is translated by
the nearest row in its method resolution order, so a subclass that a later release adds is translated like its parent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import httpx
from botocore import exceptions as boto

from storage.errors import (
    AccessRefusedError,
    BucketMissingError,
    IntegrityError,
    ObjectMissingError,
    PreconditionFailedError,
    SignatureExpiredError,
    StorageError,
    StoreFullError,
    StoreUnavailableError,
)

# Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList,
# https://developers.cloudflare.com/r2/api/error-codes/
BY_CODE: Mapping[str, type[StorageError]] = {
    "NoSuchKey": ObjectMissingError,
    "NoSuchUpload": ObjectMissingError,
    "NoSuchVersion": ObjectMissingError,
    "NoSuchBucket": BucketMissingError,
    "PreconditionFailed": PreconditionFailedError,
    "ConditionalRequestConflict": PreconditionFailedError,
    "AccessDenied": AccessRefusedError,
    "InvalidAccessKeyId": AccessRefusedError,
    "SignatureDoesNotMatch": AccessRefusedError,
    "AuthorizationHeaderMalformed": AccessRefusedError,
    "InvalidToken": AccessRefusedError,
    "Unauthorized": AccessRefusedError,
    "ExpiredToken": AccessRefusedError,
    "ExpiredRequest": SignatureExpiredError,
    "RequestTimeTooSkewed": SignatureExpiredError,
    "BadDigest": IntegrityError,
    "XAmzContentSHA256Mismatch": IntegrityError,
    "InvalidRange": IntegrityError,
    "InternalError": StoreUnavailableError,
    "ServiceUnavailable": StoreUnavailableError,
    "SlowDown": StoreUnavailableError,
    "Throttling": StoreUnavailableError,
    "ThrottlingException": StoreUnavailableError,
    "TooManyRequests": StoreUnavailableError,
    "RequestLimitExceeded": StoreUnavailableError,
    "RequestTimeout": StoreUnavailableError,
    "OperationAborted": StoreUnavailableError,
    "IncompleteBody": StoreUnavailableError,
    # MinIO's and Ceph's codes. Source: cmd/api-errors.go of MinIO, rgw_common.cc of Ceph.
    "XMinioStorageFull": StoreFullError,
    "XMinioAdminBucketQuotaExceeded": StoreFullError,
    "QuotaExceeded": StoreFullError,
    "InsufficientStorage": StoreFullError,
}

BY_STATUS: Mapping[int, type[StorageError]] = {
    401: AccessRefusedError,
    403: AccessRefusedError,
    404: ObjectMissingError,
    408: StoreUnavailableError,
    412: PreconditionFailedError,
    416: IntegrityError,
    425: StoreUnavailableError,
    429: StoreUnavailableError,
    507: StoreFullError,
}

BY_EXCEPTION: Mapping[type[BaseException], type[StorageError]] = {
    boto.BotoCoreError: StorageError,
    boto.NoCredentialsError: AccessRefusedError,
    boto.PartialCredentialsError: AccessRefusedError,
    boto.CredentialRetrievalError: AccessRefusedError,
    boto.HTTPClientError: StoreUnavailableError,
    boto.ConnectionError: StoreUnavailableError,
    boto.IncompleteReadError: StoreUnavailableError,
    boto.ChecksumError: IntegrityError,
    boto.FlexibleChecksumError: IntegrityError,
    httpx.TransportError: StoreUnavailableError,
    httpx.UnsupportedProtocol: StorageError,
    httpx.DecodingError: StoreUnavailableError,
    httpx.TooManyRedirects: StorageError,
    httpx.StreamError: StorageError,
    httpx.InvalidURL: StorageError,
    httpx.HTTPError: StorageError,
}

# AWS answers AccessDenied with "Request has expired"; rclone, AccessDenied with the message for a skewed clock.
_EXPIRED = re.compile(r"\b(has )?expired\b|difference between the request time", re.IGNORECASE)
_ERROR_FIELD = re.compile(r"<(Code|Message)>([^<]{1,500})</\1>")


def answered(status: int, code: str, message: str = "") -> type[StorageError]:
    """The error for an answer that is not a success."""
    found = BY_CODE.get(code)
    if found is AccessRefusedError and code == "AccessDenied" and _EXPIRED.search(message):
        return SignatureExpiredError
    if found is not None:
        return found
    return BY_STATUS.get(status, StoreUnavailableError if status >= 500 else StorageError)


def raised(error: BaseException) -> type[StorageError]:
    """The error for an exception of botocore or httpx.

    Raises:
        TypeError: it is neither; the caller has a defect.
    """
    for cls in type(error).__mro__:
        if cls in BY_EXCEPTION:
            return BY_EXCEPTION[cls]
    raise TypeError(f"{type(error).__name__} is no exception of a storage client") from error


def error_body(body: bytes) -> tuple[str, str]:
    """The code and the message of an S3 error document; empty strings where there is none."""
    fields = dict(_ERROR_FIELD.findall(body[:16_384].decode("utf-8", "replace")))
    return fields.get("Code", ""), fields.get("Message", "")


def client_error(
    error: boto.ClientError, operation: str, *, bucket: str, key: str | None, detail: str | None = None
) -> StorageError:
    """The error for a ClientError of botocore.

    A 404 to a HEAD has no body, hence no code: if `key` is None, the request was for the bucket.
    """
    said = error.response.get("Error", {})
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(said.get("Code", ""))
    cls = answered(status, code, str(said.get("Message", "")))
    if cls is ObjectMissingError and key is None:
        cls = BucketMissingError
    words = " ".join(filter(None, (f"HTTP {status}", code if not code.isdigit() else "", detail)))
    return cls(operation, bucket=bucket, key=key, detail=words)
