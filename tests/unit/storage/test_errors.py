"""Errors of storage: they survive pickling, name the place, and translate every foreign answer and exception."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Iterator

import httpx
import pytest
from botocore import exceptions as boto

from storage import errors
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
    TornReadError,
)
from storage.translate import BY_CODE, BY_EXCEPTION, answered, client_error, error_body, raised


def family(cls: type[StorageError] = StorageError) -> Iterator[type[StorageError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from family(child)


def exceptions_of(module: object, *roots: type[BaseException]) -> list[type[BaseException]]:
    return [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, roots)]


@pytest.mark.parametrize("cls", list(family()))
def test_every_error_survives_pickling_with_its_fields(cls: type[StorageError]) -> None:
    error = cls("get", bucket="b", key="k", detail="HTTP 500", hint="do this")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert (copy.operation, copy.bucket, copy.key, copy.detail, copy.hint) == ("get", "b", "k", "HTTP 500", "do this")
    assert str(copy) == str(error)
    assert "'b'" in str(error) and "'k'" in str(error) and "get" in str(error)


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn = set(re.findall(r"^[\s│├└─]*(\w+Error)\b", errors.__doc__ or "", re.MULTILINE))
    assert drawn == {cls.__name__ for cls in family()}


def test_only_unavailability_and_expired_signatures_are_retryable() -> None:
    assert {cls for cls in family() if cls.retryable} == {
        StoreUnavailableError,
        StoreFullError,
        TornReadError,
        SignatureExpiredError,
    }


@pytest.mark.parametrize("cls", exceptions_of(boto, boto.BotoCoreError, boto.HTTPClientError))
def test_every_exception_of_botocore_is_translated(cls: type[BaseException]) -> None:
    translated = raised(cls.__new__(cls))
    assert issubclass(translated, StorageError)
    if issubclass(cls, (boto.HTTPClientError, boto.ConnectionError)):
        assert translated is StoreUnavailableError


@pytest.mark.parametrize("cls", exceptions_of(httpx, httpx.HTTPError, httpx.StreamError, httpx.InvalidURL))
def test_every_exception_of_httpx_is_translated(cls: type[BaseException]) -> None:
    translated = raised(cls.__new__(cls))
    if issubclass(cls, (httpx.TimeoutException, httpx.NetworkError, httpx.ProtocolError)):
        assert translated is StoreUnavailableError
    assert issubclass(translated, StorageError)


def test_an_exception_that_no_client_raises_is_treated_as_a_defect() -> None:
    with pytest.raises(TypeError):
        raised(KeyError("x"))
    assert all(issubclass(cls, StorageError) for cls in BY_EXCEPTION.values())


@pytest.mark.parametrize("status", range(300, 600))
def test_every_status_is_translated_and_only_temporary_ones_are_retryable(status: int) -> None:
    cls = answered(status, "")
    assert issubclass(cls, StorageError)
    assert cls.retryable is (status >= 500 or status in (408, 425, 429))


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        (404, "NoSuchKey", "", ObjectMissingError),
        (404, "NoSuchUpload", "", ObjectMissingError),
        (404, "NoSuchBucket", "", BucketMissingError),
        (404, "404", "Not Found", ObjectMissingError),
        (412, "PreconditionFailed", "", PreconditionFailedError),
        (409, "ConditionalRequestConflict", "", PreconditionFailedError),
        (409, "OperationAborted", "", StoreUnavailableError),
        (403, "AccessDenied", "Access Denied", AccessRefusedError),
        (403, "AccessDenied", "Request has expired", SignatureExpiredError),
        (400, "AccessDenied", "The difference between the request time and the server's time", SignatureExpiredError),
        (400, "ExpiredToken", "The provided token has expired.", AccessRefusedError),
        (403, "SignatureDoesNotMatch", "", AccessRefusedError),
        (400, "BadDigest", "", IntegrityError),
        (400, "RequestTimeout", "", StoreUnavailableError),
        (503, "SlowDown", "", StoreUnavailableError),
        (200, "InternalError", "", StoreUnavailableError),
        (418, "Teapot", "", StorageError),
    ],
)
def test_answers_are_translated_as_s3_documents_them(
    status: int, code: str, message: str, expected: type[StorageError]
) -> None:
    assert answered(status, code, message) is expected


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_known_code_of_botocore_becomes_its_error(code: str) -> None:
    foreign = boto.ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}, "PutObject")  # type: ignore[typeddict-item]
    error = client_error(foreign, "put", bucket="b", key="k")
    assert type(error) is BY_CODE[code]
    assert code in str(error)


def test_a_bare_404_of_the_bucket_means_a_missing_bucket() -> None:
    foreign = boto.ClientError({"Error": {"Code": "404"}, "ResponseMetadata": {"HTTPStatusCode": 404}}, "HeadBucket")  # type: ignore[typeddict-item]
    assert type(client_error(foreign, "check", bucket="b", key=None)) is BucketMissingError
    assert type(client_error(foreign, "head", bucket="b", key="k")) is ObjectMissingError


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"<Error><Code></Code></Error>", b"{}"])
def test_a_body_that_is_no_error_document_gives_no_code(body: bytes) -> None:
    assert error_body(body) == ("", "")


def test_an_error_document_is_read() -> None:
    assert error_body(b"<Error><Code>SlowDown</Code><Message>Please</Message></Error>") == ("SlowDown", "Please")
