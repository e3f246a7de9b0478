"""The documents that are persisted: a backup's metadata (meta.json), a sandbox's state (state.json), and claims.

The first six fields of a backup's metadata are exactly those that Cloudflare's Sandbox SDK writes and reads; ours
follow and are all optional, so its backups load here and ours there. Documents of a later version are
refused; unknown fields are kept, and covered by the signature (`storage.signing`). The metadata of an incremental
backup has version 2, so that a release which knows nothing of layers refuses it.
"""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from storage.digests import ArchiveDigest, part_count
from storage.errors import CorruptMetadataError, NewerDocumentError
from storage.keys import DEFAULT_TENANT, is_name

VERSION = 1
INCREMENTAL_VERSION = 2
"""The version of an incremental backup's metadata, and of no other document."""
MAX_LAYERS = 64
"""The most layers that a backup's metadata may name. The service makes a full backup long before."""
MAX_PARTS = 10_000
_MAX_EXACT_INTEGER = 2**53 - 1
_MAX_TTL_S = 100 * 366 * 86_400
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def _read_instant(value: Any) -> Any:
    if isinstance(value, str):
        if not _INSTANT.fullmatch(value):
            raise ValueError("must be an ISO 8601 instant with a time zone")
        return datetime.fromisoformat(value)
    return value


def _sane_instant(value: datetime) -> datetime:
    """Converts to UTC and whole milliseconds, as stored. Far years are damage, and overflow when a ttl is added."""
    if value.tzinfo is None:
        raise ValueError("must have a time zone")
    if not 2000 <= value.year < 2200:
        raise ValueError("must be between the years 2000 and 2199")
    at = value.astimezone(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _write_instant(value: datetime) -> str:
    return f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03d}Z"


def _write_number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _known_version(value: int) -> int:
    if not 1 <= value <= VERSION:
        raise ValueError(f"is not a version this release knows (1 to {VERSION})")
    return value


def _known_backup_version(value: int) -> int:
    if not 1 <= value <= INCREMENTAL_VERSION:
        raise ValueError(f"is not a version this release knows (1 to {INCREMENTAL_VERSION})")
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value or ".." in PurePosixPath(value).parts or len(value) > 4096:
        raise ValueError("must be an absolute path without '..' and NUL")
    return value


def _uuid(value: str) -> str:
    if str(uuid.UUID(value)) != value:
        raise ValueError("must be a UUID in its hyphenated, lower-case form")
    return value


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError("must be 1 to 128 characters of a-z, 0-9 and '-'")
    return value


Instant = Annotated[
    datetime, BeforeValidator(_read_instant), AfterValidator(_sane_instant), PlainSerializer(_write_instant)
]
Count = Annotated[int, Field(ge=0, le=_MAX_EXACT_INTEGER)]
Seconds = Annotated[float, Field(gt=0, le=_MAX_TTL_S, allow_inf_nan=False), PlainSerializer(_write_number)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PartBytes = Annotated[int, Field(gt=0, le=_MAX_EXACT_INTEGER)]
Parts = Annotated[list[Sha256], Field(max_length=MAX_PARTS)]
Identifier = Annotated[str, AfterValidator(_name)]
BackupId = Annotated[str, AfterValidator(_uuid)]
Directory = Annotated[str, AfterValidator(_absolute)]


class Document(BaseModel):
    """The base of all persisted documents: camelCase in JSON, strict types, unknown fields kept, None left out."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="allow",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
    )
    latest: ClassVar[int] = VERSION
    """The latest version of the document that this release knows."""

    def to_json(self) -> bytes:
        """The document as it is stored: canonical, so equal documents are equal bytes."""
        return _canonical(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def said(self, *, without: str) -> bytes:
        """The fields of the document that were set, in canonical form, except for one.

        For a document that was read, these are the fields in its text. A field that a later release has added, with
        a default, changes nothing.
        """
        said = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True, exclude={without})
        return _canonical(said)


class NotKept(Document):
    """Counts of what the archive could not hold.

    Fields that were added later are None by default: the signature would cover a number.
    """

    sockets: Count = 0
    acls: Count = 0
    other_xattrs: Count = 0
    devices: Count | None = None
    far_times: Count | None = None
    flags: Count | None = None


class StoredLayer(Document):
    """One archive of an incremental backup's stack, at `keys.layer`. Each part of it can be checked by itself."""

    sha256: Sha256
    size_bytes: Count
    part_bytes: PartBytes
    parts: Parts

    @model_validator(mode="after")
    def _has_all_parts(self) -> Self:
        if len(self.parts) != part_count(self.size_bytes, self.part_bytes):
            raise ValueError("must have one digest for each part")
        return self

    @property
    def digest(self) -> ArchiveDigest:
        """The digests that a download of the layer has to match."""
        return ArchiveDigest(self.size_bytes, None, self.sha256, self.part_bytes, tuple(self.parts))


class ListingDigest(Document):
    """The digest of the listing beside the archive, which makes the metadata's signature cover it (`storage.listing`).

    Its last `index_bytes` are the index, which has this SHA-256, and says the SHA-256 of all the rest.
    """

    size_bytes: Count
    index_bytes: Annotated[int, Field(gt=0, le=16 * 2**20)]
    entries: Count
    sha256: Sha256


class BackupRecord(Document):
    """A backup's metadata. It is written last, so readable metadata means a complete backup.

    `name` is absent when there is none. `parts` are the SHA-256 of consecutive stretches of `part_bytes`.
    `uid` is the numeric owner of the archive's files; `max_name_bytes` is the length of the longest name among them.
    `partial` means that something was left out on purpose; `of_sleep` that the service made the backup to put its
    sandbox to sleep, and will delete it. `place` is where the directory lay, if symbolic links led there from `dir`.

    An incremental backup has `layers`, oldest first: a whole archive, and what was changed since. The last is its own,
    which `size_bytes`, `sha256`, `part_bytes` and `parts` describe. It needs all of them and no other backup; `parent`,
    the backup that it was made from, is told to people only, and may be gone.
    """

    latest: ClassVar[int] = INCREMENTAL_VERSION

    id: BackupId
    dir: Directory
    name: Annotated[str, Field(max_length=256)] | None = None
    size_bytes: Count
    ttl: Seconds
    created_at: Instant

    version: Annotated[int, AfterValidator(_known_backup_version)] | None = None
    tenant: Identifier | None = None
    sandbox: Identifier | None = None
    sha256: Sha256 | None = None
    part_bytes: PartBytes | None = None
    parts: Parts | None = None
    etag: Annotated[str, Field(max_length=1024)] | None = None
    files: Count | None = None
    inodes: Count | None = None
    source_bytes: Count | None = None
    compression: Annotated[str, Field(max_length=64)] | None = None
    not_kept: NotKept | None = None
    max_name_bytes: Count | None = None
    uid: Count | None = None
    partial: bool | None = None
    of_sleep: bool | None = None
    place: Directory | None = None
    layers: Annotated[list[StoredLayer], Field(min_length=2, max_length=MAX_LAYERS)] | None = None
    parent: BackupId | None = None
    listing: ListingDigest | None = None
    signature: Annotated[str, Field(max_length=256)] | None = None

    @model_validator(mode="after")
    def _layers_agree(self) -> Self:
        if (self.layers is not None) != (self.version == INCREMENTAL_VERSION):
            raise ValueError("a backup has layers if its version is 2, and only then")
        if self.layers is None:
            return self
        own = self.layers[-1]
        said = (self.sha256, self.size_bytes, self.part_bytes, self.parts)
        if said != (own.sha256, own.size_bytes, own.part_bytes, own.parts):
            raise ValueError("the last layer must be the backup's own")
        if len({layer.sha256 for layer in self.layers}) != len(self.layers):
            raise ValueError("no layer may be there twice")
        if sum(len(layer.parts) for layer in self.layers) > MAX_PARTS:
            raise ValueError(f"the layers must have at most {MAX_PARTS} parts together")
        return self

    @property
    def is_signed(self) -> bool:
        """True if it carries a signature. The catalog returns no record whose signature is wrong."""
        return self.signature is not None

    @property
    def has_lost_its_signature(self) -> bool:
        """True if it is unsigned, and yet has fields that only the service writes, which signs all that it writes."""
        return self.signature is None and any(getattr(self, name) is not None for name in _OURS)

    @property
    def owner(self) -> str:
        """The tenant it belongs to: the default one if a foreign writer named none."""
        return self.tenant or DEFAULT_TENANT

    @property
    def expires_at(self) -> datetime:
        """`created_at` plus the time to live."""
        return self.created_at + timedelta(seconds=self.ttl)

    def is_expired(self, now: datetime, buffer_s: float = 60) -> bool:
        """True if it expires within `buffer_s` of `now`, or has expired."""
        return now + timedelta(seconds=buffer_s) >= self.expires_at

    @property
    def digest(self) -> ArchiveDigest:
        """The digests that a download of the archive has to match."""
        return ArchiveDigest(self.size_bytes, self.etag, self.sha256, self.part_bytes, tuple(self.parts or ()))

    @property
    def is_incremental(self) -> bool:
        """True if its content is a stack of layers; otherwise it is one archive of its own."""
        return self.layers is not None

    @property
    def stack(self) -> tuple[StoredLayer, ...]:
        """The layers that its content consists of, oldest first, which others may be laid on.

        A full backup's is its own archive as a layer; empty where its digests do not suffice for one.
        """
        if self.layers is not None:
            return tuple(self.layers)
        if self.sha256 is None or self.part_bytes is None or not self.digest.has_parts:
            return ()
        return (
            StoredLayer(
                sha256=self.sha256, size_bytes=self.size_bytes, part_bytes=self.part_bytes, parts=self.parts or []
            ),
        )

    @property
    def total_bytes(self) -> int:
        """The size of all archives that a restore of it needs."""
        return sum(layer.size_bytes for layer in self.layers) if self.layers else self.size_bytes

    @property
    def depth(self) -> int:
        """The number of archives that a restore of it needs."""
        return len(self.layers) if self.layers else 1


_OURS = frozenset(BackupRecord.model_fields) - {"id", "dir", "name", "size_bytes", "ttl", "created_at"}
"""Fields that the service writes and Cloudflare's SDK does not."""


class RestoredDirectory(Document):
    """A directory of the sandbox that came from a backup."""

    dir: Directory
    backup_id: BackupId
    mode: Annotated[str, Field(max_length=32)]
    driver: Annotated[str, Field(max_length=64)] | None = None
    restored_at: Instant


class Checkpoint(Document):
    """The backup that a directory is recovered from: its own last backup, or the backup restored into it.

    `taken_at` is the time at which its content was taken. `of_sleep` marks a backup that the service made to put the
    sandbox to sleep.
    """

    dir: Directory
    backup_id: BackupId
    taken_at: Instant
    mode: Annotated[str, Field(max_length=32)] = "overlay"
    of_sleep: bool = False


class RecoveredDirectory(Document):
    """The result for one checkpoint when its sandbox was recovered; `error` is the code of what went wrong.

    `status` is "restored", "missing" (the sandbox waits for it) or "forgotten" (given up); absent in older documents,
    where an error means "forgotten".
    """

    dir: Directory
    backup_id: BackupId
    taken_at: Instant
    error: Annotated[str, Field(max_length=64)] | None = None
    status: Annotated[str, Field(max_length=32)] | None = None


class Recovery(Document):
    """The recovery of a sandbox after the node with its files was lost.

    `directories` has the result for each checkpoint; nothing else was recovered.
    `lost` are the writable roots that had held something which is in no backup; absent where that was not recorded.
    `told_at` is the time at which a caller surely received this report.
    """

    at: Instant
    lost_node: Annotated[str, Field(max_length=64)] | None = None
    directories: list[RecoveredDirectory] = []
    lost: list[Directory] | None = None
    told_at: Instant | None = None

    @property
    def is_untold(self) -> bool:
        """True if a caller still has to learn that the sandbox is not what it was."""
        return self.told_at is None and self.lost is not None and bool(self.lost or self.directories)


class Event(Document):
    """Something that happened to a sandbox."""

    kind: Annotated[str, Field(max_length=32)]
    at: Instant
    dir: Directory | None = None
    backup_id: BackupId | None = None
    node: Annotated[str, Field(max_length=64)] | None = None


class Retention(Document):
    """The policy by which a sandbox's backups are kept; all others are deleted, if it has a number."""

    keep_last: Annotated[int, Field(ge=1)] | None = None
    keep_daily: Annotated[int, Field(ge=1)] | None = None
    pinned: list[BackupId] = []


class SandboxState(Document):
    """A sandbox's state document: what has to outlive its actor.

    `node` is the identity of the data folder in which its files are, `cluster_node` the cluster's name for that node;
    both are absent while its files are nowhere but in its checkpoints, and `slept_on` is the node that put it to sleep.
    `epoch` is the fencing token, a count of the actors it has had: one with a smaller epoch than this may write nothing
    any more. `pending` are backups that an actor has begun to upload. `sleep_backups` are those that the service has
    made to put the sandbox to sleep, pending ones among them, and has to delete. `unsaved` are the writable roots that
    held anything which is in no checkpoint when the actor last looked; absent if it never looked. `events` are the
    latest, oldest first. `retention` is the policy by which its backups are kept; absent if all are.
    """

    version: Annotated[int, AfterValidator(_known_version)] = VERSION
    id: Identifier
    tenant: Identifier
    created_at: Instant
    epoch: Count = 0
    last_used_at: Instant | None = None
    labels: dict[str, str] = {}
    node: Annotated[str, Field(max_length=64)] | None = None
    cluster_node: Annotated[str, Field(max_length=64)] | None = None
    slept_on: Annotated[str, Field(max_length=64)] | None = None
    restored: list[RestoredDirectory] = []
    checkpoints: list[Checkpoint] = []
    pending: list[BackupId] = []
    sleep_backups: list[BackupId] = []
    unsaved: list[Directory] | None = None
    recovery: Recovery | None = None
    events: list[Event] = []
    retention: Retention | None = None


class Claim(Document):
    """The backup that an idempotency key stands for. A claim counts only if its backup is committed."""

    version: Annotated[int, AfterValidator(_known_version)] = VERSION
    backup_id: BackupId


D = TypeVar("D", bound=Document)


def load(document: type[D], data: bytes, *, bucket: str | None = None, key: str | None = None) -> D:
    """Reads a stored document.

    Raises:
        CorruptMetadataError: it is damaged; permanent. The message names the fields, never their values.
        NewerDocumentError: it is of a later version; permanent.
    """
    try:
        return document.model_validate_json(data)
    except ValidationError as e:
        if _is_newer(data, document.latest):
            detail = f"this release knows {document.latest}"
            raise NewerDocumentError("read", bucket=bucket, key=key, detail=detail) from None
        lines = [f"{'.'.join(map(str, line['loc'])) or 'document'}: {line['msg']}" for line in e.errors()[:5]]
        raise CorruptMetadataError("read", bucket=bucket, key=key, detail="; ".join(lines)) from None


def _is_newer(data: bytes, latest: int) -> bool:
    """True if a document that cannot be read says that it is of a later version than `latest`."""
    try:
        version = _Versioned.model_validate_json(data).version
    except ValidationError:
        return False
    return version > latest


class _Versioned(BaseModel):
    """The fields that documents of all releases have in common."""

    model_config = ConfigDict(strict=True, extra="ignore")

    version: int


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
