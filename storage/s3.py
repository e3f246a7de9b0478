"""The `ObjectStore` for S3. Works with R2, Amazon S3, rclone, MinIO and moto.

boto3 is loaded (`storage.s3_client`) at the first request, so that a process that makes none does not wait for it.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast

from storage import digests
from storage.config import BucketConfig, TransferConfig
from storage.errors import (
    AccessRefusedError,
    IntegrityError,
    LifecycleUnsupportedError,
    ObjectMissingError,
    PreconditionFailedError,
    StorageError,
    StoreUnavailableError,
    TornReadError,
)
from storage.lifecycle import over_layers
from storage.on_disk import size_on_disk
from storage.room import full_told, lacks_room
from storage.store import SMALL_OBJECT_BYTES, Head, Listed, Page, SignedRequest, Stored, Upload
from storage.time_limit import held, left_s

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        LifecycleRuleTypeDef,
        ListObjectsV2RequestTypeDef,
        PutObjectRequestTypeDef,
    )

logger = logging.getLogger(__name__)

_RULES_LAST_S = 3600.0
_PROBE_PREFIX = "holdfast-probe/"
# Error codes of stores without lifecycle rules: AWS's, MinIO's, and rclone's, which takes the request for another one.
_NO_LIFECYCLE = {"NotImplemented", "MethodNotAllowed", "UnsupportedOperation", "BucketAlreadyExists"}


def _etag_is_digest(answer: Mapping[str, Any]) -> bool:
    return digests.etag_is_digest(
        encryption=answer.get("ServerSideEncryption"), customer_algorithm=answer.get("SSECustomerAlgorithm")
    )


def _read(body: StreamingBody, size_bytes: int) -> bytes:
    """Reads a body, and closes it: at most one byte more than `size_bytes`, and nothing if it is broken off."""
    from storage.s3_client import BROKEN_OFF

    with closing(body):  # `with body` would give urllib3's, whose exceptions are its own
        try:
            return body.read(size_bytes + 1)
        except BROKEN_OFF:
            return b""


class S3ObjectStore:
    """One bucket of an S3 service. Thread-safe; not picklable: send the `BucketConfig` instead."""

    def __init__(
        self, config: BucketConfig, *, transfer: TransferConfig | None = None, conditional_writes: bool | None = None
    ) -> None:
        """`conditional_writes` is the result of `supports_conditional_writes` in another process."""
        self._config = config
        self._transfer = transfer or TransferConfig()
        self._probe_lock = threading.Lock()
        self._conditional = conditional_writes
        self._rules_lock = threading.Lock()
        self._rules: tuple[float, tuple[str, ...]] | None = None
        # False once an object has the same content and the same other ETag at every attempt.
        self._etags_are_digests = True

    @property
    def _client(self) -> S3Client:
        return self._patient_client if left_s() is None else self._hasty_client

    @functools.cached_property
    def _patient_client(self) -> S3Client:  # two threads at the first request may make two: one is kept, both work
        from storage.s3_client import open_client

        return open_client(self._config, self._transfer)

    @functools.cached_property
    def _hasty_client(self) -> S3Client:  # likewise
        from storage.s3_client import open_hasty_client

        return open_hasty_client(self._config, self._transfer)

    @property
    def bucket(self) -> str:
        return self._config.bucket

    @property
    def keeps_early_parts_in_memory(self) -> bool:
        return self._config.folder is not None  # rclone, the embedded store

    def __repr__(self) -> str:
        return f"S3ObjectStore(bucket={self.bucket!r}, host={self._config.host!r}, region={self._config.region!r})"

    def _translated(self, operation: str, key: str | None) -> AbstractContextManager[None]:
        from storage.s3_client import translated

        where = f"at {self._config.host}, region {self._config.region}"
        return translated(operation, bucket=self.bucket, key=key, detail=where)

    def lacks_room(self, size_bytes: int) -> bool:
        return self._config.folder is not None and lacks_room(self._config.folder, size_bytes)

    def check(self) -> None:
        """Checks that the bucket exists and that the keys open it.

        Raises:
            BucketMissingError, AccessRefusedError: permanent.
        """
        with self._translated("check", None):
            self._client.head_bucket(Bucket=self.bucket)

    def find_now(self) -> datetime | None:
        with self._translated("check", None):
            answer = self._client.head_bucket(Bucket=self.bucket)
        try:
            return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        except (KeyError, ValueError):
            return None

    def get(self, key: str, *, max_bytes: int = SMALL_OBJECT_BYTES) -> Stored:
        from storage.s3_client import until_whole

        torn: list[Stored] = []

        def read() -> Stored:
            stored, etag_is_digest = self._get(key, max_bytes)
            if not (self._etags_are_digests and etag_is_digest) or digests.is_of_etag(stored.data, stored.etag):
                return stored
            torn.append(stored)
            raise TornReadError("get", bucket=self.bucket, key=key, detail="the content is not that of its ETag")

        try:
            return until_whole(read, self._transfer)
        except TornReadError:
            if len(torn) < self._transfer.attempts or any(stored != torn[0] for stored in torn):
                raise
            self._etags_are_digests = False
            return torn[0]

    def _get(self, key: str, max_bytes: int) -> tuple[Stored, bool]:
        """Reads an object once. The second value is False if the ETag is no function of the content."""
        with self._translated("get", key):
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            data = _read(answer["Body"], max_bytes)
            etag = self._etag(answer, "get", key)
        if len(data) > max_bytes:
            detail = f"larger than {max_bytes} bytes"
            raise IntegrityError("get", bucket=self.bucket, key=key, detail=detail)
        if len(data) != answer["ContentLength"]:
            raise TornReadError("get", bucket=self.bucket, key=key, detail="the answer was cut short")
        return Stored(data, etag), _etag_is_digest(answer)

    def get_range(self, key: str, *, start: int, size_bytes: int) -> Stored:
        from storage.s3_client import until_whole

        return until_whole(lambda: self._get_range(key, start, size_bytes), self._transfer)

    def _get_range(self, key: str, start: int, size_bytes: int) -> Stored:
        span = f"{start}-{start + size_bytes - 1}"
        with self._translated("get_range", key):
            answer = self._client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes={span}")
            data = _read(answer["Body"], size_bytes)
            etag = self._etag(answer, "get_range", key)
        # A store that ignores the range says none, and one with less than was asked for names another.
        if not answer.get("ContentRange", "").startswith(f"bytes {span}/"):
            raise IntegrityError("get_range", bucket=self.bucket, key=key, detail="it ends before this range")
        if len(data) != size_bytes:
            raise TornReadError("get_range", bucket=self.bucket, key=key, detail="the answer was cut short")
        return Stored(data, etag)

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        request: PutObjectRequestTypeDef = {"Bucket": self.bucket, "Key": key, "Body": data}
        if if_none_match:
            request["IfNoneMatch"] = "*"
        if if_match is not None:
            request["IfMatch"] = f'"{if_match}"'
        try:
            with full_told(self, "put", key, len(data)), self._translated("put", key):
                answer = self._client.put_object(**request)
        except ObjectMissingError as e:
            # Amazon answers an If-Match on a missing object with NoSuchKey.
            raise PreconditionFailedError("put", bucket=self.bucket, key=key, detail=e.detail) from None
        return self._etag(answer, "put", key)

    def head(self, key: str) -> Head:
        with self._translated("head", key):
            answer = self._client.head_object(Bucket=self.bucket, Key=key)
        etag = self._etag(answer, "head", key)
        return Head(answer["ContentLength"], etag, answer["LastModified"], _etag_is_digest(answer))

    def size_of(self, key: str) -> int:
        if self._config.folder is not None:
            self.check()  # the store has to answer, and the keys have to open it
            size_bytes = size_on_disk(self._config.folder / self.bucket, key)
            if size_bytes is not None:
                return size_bytes
        return self.head(key).size_bytes

    def copy(self, source: str, target: str, *, if_match: str) -> str:
        with full_told(self, "copy", target, 0), self._translated("copy", source):
            answer = self._client.copy_object(
                Bucket=self.bucket,
                Key=target,
                CopySource={"Bucket": self.bucket, "Key": source},
                CopySourceIfMatch=f'"{if_match}"',
            )
        return self._etag(self._told(answer, "CopyObjectResult", "copy", source), "copy", source)

    def delete(self, key: str) -> None:
        try:
            with self._translated("delete", key):
                self._client.delete_object(Bucket=self.bucket, Key=key)
        except ObjectMissingError:
            pass

    def list(self, prefix: str, *, after: str | None = None, limit: int = 1000, delimiter: str | None = None) -> Page:
        if after is not None and delimiter and after.endswith(delimiter):
            # Stores differ in whether a folded prefix comes after itself. Its successor in byte order means the same
            # to all of them: "a/" and everything under it lie before "a0", and nothing lies between.
            after = after[:-1] + chr(ord(delimiter) + 1)
        request: ListObjectsV2RequestTypeDef = {"Bucket": self.bucket, "Prefix": prefix, "MaxKeys": limit}
        if after is not None:
            request["StartAfter"] = after
        if delimiter is not None:
            request["Delimiter"] = delimiter
        with self._translated("list", prefix):
            answer = self._client.list_objects_v2(**request)
        objects = tuple(Listed(row["Key"], row["Size"], row["LastModified"]) for row in answer.get("Contents", ()))
        prefixes = tuple(row["Prefix"] for row in answer.get("CommonPrefixes", ()))
        last = max([row.key for row in objects] + list(prefixes), default=None, key=str.encode)
        return Page(objects, prefixes, last if self._told(answer, "IsTruncated", "list", prefix) else None)

    def supports_conditional_writes(self) -> bool:
        with held(self._probe_lock, "probe", bucket=self.bucket):
            if self._conditional is None:
                self._conditional = self._probe()
            return self._conditional

    def _probe(self) -> bool:
        """Writes an object, then tries to create and to replace it against conditions that do not hold."""
        key = f"{_PROBE_PREFIX}{uuid.uuid4()}"
        try:
            self.put(key, b"probe")
            return self._refused(key, if_none_match=True) and self._refused(key, if_match="0" * 32)
        finally:
            self.delete(key)

    def _refused(self, key: str, *, if_none_match: bool = False, if_match: str | None = None) -> bool:
        try:
            self.put(key, b"again", if_none_match=if_none_match, if_match=if_match)
        except PreconditionFailedError:
            return True
        except StorageError as e:
            if e.retryable:
                raise
            return False  # "NotImplemented" and its kin
        return False

    def rules_over_layers(self) -> Sequence[str]:
        with held(self._rules_lock, "lifecycle", bucket=self.bucket):
            if self._rules is None or time.monotonic() - self._rules[0] > _RULES_LAST_S:
                self._rules = (time.monotonic(), self._find_rules_over_layers())
            return self._rules[1]

    def _find_rules_over_layers(self) -> tuple[str, ...]:
        try:
            found = over_layers(self.lifecycle_rules())
        except LifecycleUnsupportedError:
            return ()
        except AccessRefusedError:
            logger.info("the lifecycle rules of bucket %s cannot be read; `holdfast doctor` says more", self.bucket)
            return ()
        if found:
            logger.warning(
                "lifecycle rules of bucket %s would delete layers of incremental backups, so all backups are full: %s",
                self.bucket,
                ", ".join(found),
            )
        return found

    def _presign(
        self, operation: str, params: Mapping[str, Any], ttl_s: int, headers: Mapping[str, str]
    ) -> SignedRequest:
        with self._translated(operation, str(params["Key"])):
            url = self._client.generate_presigned_url(
                operation, Params={"Bucket": self.bucket, **params}, ExpiresIn=ttl_s
            )
        return SignedRequest(url, headers)

    def presign_get(self, key: str, *, ttl_s: int) -> SignedRequest:
        return self._presign("get_object", {"Key": key}, ttl_s, {})

    def presign_put(self, key: str, *, content_md5: str, size_bytes: int, ttl_s: int) -> SignedRequest:
        headers = {"Content-MD5": content_md5, "Content-Length": str(size_bytes)}
        params = {"Key": key, "ContentMD5": content_md5, "ContentLength": size_bytes}
        return self._presign("put_object", params, ttl_s, headers)

    def create_upload(self, key: str) -> str:
        with full_told(self, "create_upload", key, 0), self._translated("create_upload", key):
            answer = self._client.create_multipart_upload(Bucket=self.bucket, Key=key)
        return str(self._told(answer, "UploadId", "create_upload", key))

    def presign_part(
        self, key: str, upload_id: str, number: int, *, content_md5: str, size_bytes: int, ttl_s: int
    ) -> SignedRequest:
        headers = {"Content-MD5": content_md5, "Content-Length": str(size_bytes)}
        params = {
            "Key": key,
            "UploadId": upload_id,
            "PartNumber": number,
            "ContentMD5": content_md5,
            "ContentLength": size_bytes,
        }
        return self._presign("upload_part", params, ttl_s, headers)

    def complete_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> str:
        rows: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, start=1)
        ]
        with self._translated("complete_upload", key):
            # botocore turns a 200 whose body is an <Error> into a ClientError.
            answer = self._client.complete_multipart_upload(
                Bucket=self.bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": rows}
            )
        return self._etag(answer, "complete_upload", key)

    def abort_upload(self, key: str, upload_id: str) -> None:
        try:
            with self._translated("abort_upload", key):
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)
        except ObjectMissingError:
            pass

    def list_uploads(self, prefix: str) -> Sequence[Upload]:
        found: list[Upload] = []
        try:
            with self._translated("list_uploads", prefix):
                pages = self._client.get_paginator("list_multipart_uploads")
                for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
                    found += [Upload(u["Key"], u["UploadId"], u["Initiated"]) for u in page.get("Uploads", ())]
        except ObjectMissingError:
            # rclone's answer (NoSuchUpload) for a bucket in which no upload was begun since it started.
            return []
        return [upload for upload in found if upload.key.startswith(prefix)]

    def lifecycle_rules(self) -> Sequence[Mapping[str, Any]]:
        """The bucket's lifecycle rules, as the store has them.

        Raises:
            LifecycleUnsupportedError: permanent.
        """
        with self._lifecycle():
            try:
                answer = self._client.get_bucket_lifecycle_configuration(Bucket=self.bucket)
            except self._client.exceptions.ClientError as e:
                if e.response["Error"].get("Code") == "NoSuchLifecycleConfiguration":
                    return []
                raise
        if "Rules" not in answer:
            # rclone takes the request for a listing of the bucket; S3 never sends a configuration without rules.
            raise LifecycleUnsupportedError("lifecycle", bucket=self.bucket)
        return answer["Rules"]

    def replace_lifecycle_rules(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Replaces all of the bucket's lifecycle rules by `rules`, in one atomic write.

        Raises:
            LifecycleUnsupportedError: permanent.
        """
        with self._lifecycle():
            if rules:
                self._client.put_bucket_lifecycle_configuration(
                    Bucket=self.bucket,
                    LifecycleConfiguration={"Rules": cast("list[LifecycleRuleTypeDef]", list(rules))},
                )
            else:
                self._client.delete_bucket_lifecycle(Bucket=self.bucket)

    def _told(self, answer: Mapping[str, Any], field: str, operation: str, key: str) -> Any:
        """Returns a field that every answer of S3 has. Raises StoreUnavailableError if something else has answered."""
        if answer.get(field) in (None, ""):
            raise StoreUnavailableError(operation, bucket=self.bucket, key=key, detail=f"an answer without {field}")
        return answer[field]

    def _etag(self, answer: Mapping[str, Any], operation: str, key: str) -> str:
        return str(self._told(answer, "ETag", operation, key)).strip('"')

    @contextmanager
    def _lifecycle(self) -> Iterator[None]:
        with self._translated("lifecycle", None):
            try:
                yield
            except self._client.exceptions.ClientError as e:
                if e.response["Error"].get("Code") in _NO_LIFECYCLE:
                    raise LifecycleUnsupportedError("lifecycle", bucket=self.bucket) from None
                raise
