"""An object store in this process's memory, for tests of what is built on stores."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from storage.errors import IntegrityError, ObjectMissingError, PreconditionFailedError
from storage.store import SMALL_OBJECT_BYTES, Head, Listed, Page, SignedRequest, Stored, Upload


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    last_modified: datetime

    @property
    def etag(self) -> str:
        return hashlib.md5(self.data).hexdigest()


class MemoryObjectStore:
    """Keeps the contract of `ObjectStore` with conditional writes, but serves no URLs: nothing can be transferred."""

    bucket = "memory"
    keeps_early_parts_in_memory = True

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._objects: dict[str, _Object] = {}
        self._uploads: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def get(self, key: str, *, max_bytes: int = SMALL_OBJECT_BYTES) -> Stored:
        found = self._object("get", key)
        if len(found.data) > max_bytes:
            raise IntegrityError("get", bucket=self.bucket, key=key, detail=f"larger than {max_bytes} bytes")
        return Stored(found.data, found.etag)

    def get_range(self, key: str, *, start: int, size_bytes: int) -> Stored:
        found = self._object("get_range", key)
        data = found.data[start : start + size_bytes]
        if len(data) != size_bytes:
            raise IntegrityError("get_range", bucket=self.bucket, key=key, detail="it ends before this range")
        return Stored(data, found.etag)

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        with self._lock:
            before = self._objects.get(key)
            if (if_none_match and before) or (if_match is not None and (before is None or before.etag != if_match)):
                raise PreconditionFailedError("put", bucket=self.bucket, key=key)
            made = self._objects[key] = _Object(bytes(data), self._clock())
        return made.etag

    def head(self, key: str) -> Head:
        found = self._object("head", key)
        return Head(len(found.data), found.etag, found.last_modified)

    def size_of(self, key: str) -> int:
        return len(self._object("size_of", key).data)

    def copy(self, source: str, target: str, *, if_match: str) -> str:
        with self._lock:
            found = self._objects.get(source)
            if found is None:
                raise ObjectMissingError("copy", bucket=self.bucket, key=source)
            if found.etag != if_match:
                raise PreconditionFailedError("copy", bucket=self.bucket, key=source)
            self._objects[target] = _Object(found.data, self._clock())
        return found.etag

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(key, None)

    def list(self, prefix: str, *, after: str | None = None, limit: int = 1000, delimiter: str | None = None) -> Page:
        objects: list[Listed] = []
        prefixes: list[str] = []
        last = None
        for name, found in self._rows(prefix, after, delimiter):
            if len(objects) + len(prefixes) == limit:
                return Page(tuple(objects), tuple(prefixes), last)
            last = name
            if found is None:
                prefixes.append(name)
            else:
                objects.append(Listed(name, len(found.data), found.last_modified))
        return Page(tuple(objects), tuple(prefixes), None)

    def find_now(self) -> datetime | None:
        return self._clock()

    def lacks_room(self, size_bytes: int) -> bool:
        return False

    def supports_conditional_writes(self) -> bool:
        return True

    def rules_over_layers(self) -> Sequence[str]:
        return ()

    def presign_get(self, key: str, *, ttl_s: int) -> SignedRequest:
        raise NotImplementedError

    def presign_put(self, key: str, *, content_md5: str, size_bytes: int, ttl_s: int) -> SignedRequest:
        raise NotImplementedError

    def create_upload(self, key: str) -> str:
        made = Upload(key, uuid.uuid4().hex, self._clock())
        with self._lock:
            self._uploads[made.upload_id] = made
        return made.upload_id

    def presign_part(
        self, key: str, upload_id: str, number: int, *, content_md5: str, size_bytes: int, ttl_s: int
    ) -> SignedRequest:
        raise NotImplementedError

    def complete_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> str:
        """No upload can be completed, since none of its parts can be sent."""
        raise ObjectMissingError("complete", bucket=self.bucket, key=key)

    def abort_upload(self, key: str, upload_id: str) -> None:
        with self._lock:
            self._uploads.pop(upload_id, None)

    def list_uploads(self, prefix: str) -> Sequence[Upload]:
        with self._lock:
            return [upload for upload in self._uploads.values() if upload.key.startswith(prefix)]

    def _object(self, operation: str, key: str) -> _Object:
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            raise ObjectMissingError(operation, bucket=self.bucket, key=key)
        return found

    def _rows(self, prefix: str, after: str | None, delimiter: str | None) -> Iterator[tuple[str, _Object | None]]:
        """Each key after `after` with its object, and each prefix that the delimiter folds, in the order of bytes."""
        with self._lock:
            objects = sorted(self._objects.items(), key=lambda row: row[0].encode())
        folded = None
        for key, found in objects:
            if not key.startswith(prefix) or (folded is not None and key.startswith(folded)):
                continue
            head, mark, _ = key.removeprefix(prefix).partition(delimiter or "\0")
            name = f"{prefix}{head}{mark}" if mark else key
            folded = name if mark else None
            if after is None or name.encode() > after.encode():
                yield name, None if mark else found
