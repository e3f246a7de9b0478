"""The keys of all objects in the bucket.

    backups/<backup id>/data.sqsh                       the archive
    backups/<backup id>/meta.json                       its metadata
    backups/<backup id>/files.list                      the listing of its files
    sandboxes/<sandbox>/backups/<descending stamp>-<backup id>      index entry
    sandboxes/<sandbox>/keys/<SHA-256 of the key>       claim: the backup that an idempotency key stands for
    sandboxes/<sandbox>/state.json                      the sandbox's durable state
    tenants/<tenant>/sandboxes/...                      the last three again, for every tenant but "default"
    tenants/<tenant>/layers/<SHA-256>.sqsh              a layer of incremental backups, for the tenant "default" too
    tenants/<tenant>/layers/<SHA-256>/refs/<backup id>  reference: the backup that needs the layer
    tenants/<tenant>/layers/<SHA-256>/dying/<run>       mark: the run of the collector that is about to delete the layer
    damaged/<stamp>/<key>                               a damaged document that was replaced, kept for a person

S3 lists in ascending order of the keys' bytes only, and people want the newest backup first. So the stamp begins with
the milliseconds left until a fixed far instant, in 13 digits: a younger backup has a smaller number, and one LIST page
is one page of newest backups. The instant of the backup follows in readable form:
`8228158527876-20260223T101112123Z-<backup id>`.

Names of tenants and sandboxes contain no "/" and are not empty, so no prefix of one is a prefix of another.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

DEFAULT_TENANT = "default"
BACKUPS_PREFIX = "backups/"
LAYERS_ROOT = "tenants/"
INDEX_ROOTS = ("sandboxes/", LAYERS_ROOT)
DAMAGED_PREFIX = "damaged/"

# 13 digits of milliseconds reach to the year 2286.
_LAST_MS = 10**13 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAME = r"[a-z0-9](?:[a-z0-9\-]{0,126}[a-z0-9])?"
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ENTRY = rf"(?P<left>[0-9]{{13}})-[0-9]{{8}}T[0-9]{{9}}Z-(?P<backup>{_UUID})"
_NAME_PATTERN = re.compile(_NAME)
_ENTRY_PATTERN = re.compile(_ENTRY)
_INDEX_PATTERN = re.compile(rf"(?:tenants/(?P<tenant>{_NAME})/)?sandboxes/(?P<sandbox>{_NAME})/backups/{_ENTRY}")
_CLAIM_PATTERN = re.compile(rf"(?:tenants/{_NAME}/)?sandboxes/{_NAME}/keys/[0-9a-f]{{64}}")
_STATE_PATTERN = re.compile(rf"(?:tenants/(?P<tenant>{_NAME})/)?sandboxes/(?P<sandbox>{_NAME})/state\.json")
_SHA256 = r"[0-9a-f]{64}"
_SHA256_PATTERN = re.compile(_SHA256)
_LAYER_PATTERN = re.compile(
    rf"tenants/(?P<tenant>{_NAME})/layers/(?P<sha256>{_SHA256})"
    rf"(?:\.sqsh|/refs/(?P<backup>{_UUID})|/dying/(?P<run>{_UUID}))"
)
_BACKUP_PATTERN = re.compile(rf"backups/(?P<backup>{_UUID})/(?P<file>data\.sqsh|meta\.json|files\.list)")


def _checked_name(kind: str, value: str) -> str:
    if not _NAME_PATTERN.fullmatch(value):
        raise ValueError(f"not a valid {kind} name")
    return value


def _checked_id(backup_id: str) -> str:
    if str(uuid.UUID(backup_id)) != backup_id:
        raise ValueError("not a UUID in its hyphenated, lower-case form")
    return backup_id


def archive(backup_id: str) -> str:
    """The key of a backup's archive."""
    return f"{BACKUPS_PREFIX}{_checked_id(backup_id)}/data.sqsh"


def metadata(backup_id: str) -> str:
    """The key of a backup's metadata."""
    return f"{BACKUPS_PREFIX}{_checked_id(backup_id)}/meta.json"


def listing(backup_id: str) -> str:
    """The key of the listing of a backup's files."""
    return f"{BACKUPS_PREFIX}{_checked_id(backup_id)}/files.list"


def layers_prefix(tenant: str) -> str:
    """The prefix of the keys of all layers of a tenant, and of their references and marks.

    The tenants share no layers: a digest that opens another tenant's layer would tell who has the same files.
    """
    return f"tenants/{_checked_name('tenant', tenant)}/layers/"


def _layer(tenant: str, sha256: str) -> str:
    if not _SHA256_PATTERN.fullmatch(sha256):
        raise ValueError("not a SHA-256 in hexadecimal")
    return layers_prefix(tenant) + sha256


def layer(tenant: str, sha256: str) -> str:
    """The key of a layer's archive."""
    return f"{_layer(tenant, sha256)}.sqsh"


def layer_references(tenant: str, sha256: str) -> str:
    """The prefix of the keys of a layer's references."""
    return f"{_layer(tenant, sha256)}/refs/"


def layer_reference(tenant: str, sha256: str, backup_id: str) -> str:
    """The key of a backup's reference to a layer."""
    return layer_references(tenant, sha256) + _checked_id(backup_id)


def layer_marks(tenant: str, sha256: str) -> str:
    """The prefix of the keys of the marks of those that are about to delete a layer."""
    return f"{_layer(tenant, sha256)}/dying/"


def layer_mark(tenant: str, sha256: str, run: str) -> str:
    """The key of the mark of one run of the collector, named by a UUID."""
    return layer_marks(tenant, sha256) + _checked_id(run)


def sandboxes_prefix(tenant: str) -> str:
    """The prefix of the keys of all sandboxes of a tenant."""
    if _checked_name("tenant", tenant) == DEFAULT_TENANT:
        return "sandboxes/"
    return f"tenants/{tenant}/sandboxes/"


def sandbox_prefix(tenant: str, sandbox: str) -> str:
    """The prefix of all keys of one sandbox."""
    return f"{sandboxes_prefix(tenant)}{_checked_name('sandbox', sandbox)}/"


def state(tenant: str, sandbox: str) -> str:
    """The key of a sandbox's durable state."""
    return f"{sandbox_prefix(tenant, sandbox)}state.json"


def find_state(key: str) -> tuple[str, str] | None:
    """The tenant and the sandbox of the state at `key`; None for any other key."""
    found = _STATE_PATTERN.fullmatch(key)
    if found is None or found["tenant"] == DEFAULT_TENANT:
        return None
    return found["tenant"] or DEFAULT_TENANT, found["sandbox"]


def aside(key: str, at: datetime) -> str:
    """The key for the copy of a document that was damaged at `key`, kept for a person."""
    return f"{DAMAGED_PREFIX}{at.astimezone(UTC):%Y%m%dT%H%M%S%fZ}/{key}"


def index_prefix(tenant: str, sandbox: str) -> str:
    """The prefix of the keys of one sandbox's index entries."""
    return f"{sandbox_prefix(tenant, sandbox)}backups/"


def claim(tenant: str, sandbox: str, idempotency_key: str) -> str:
    """The key of the claim for an idempotency key."""
    return f"{sandbox_prefix(tenant, sandbox)}keys/{hashlib.sha256(idempotency_key.encode()).hexdigest()}"


def is_claim(key: str) -> bool:
    """True if `key` is the key of a claim."""
    return _CLAIM_PATTERN.fullmatch(key) is not None


def entry_name(created_at: datetime, backup_id: str) -> str:
    """The last segment of an index entry's key; the segment of a younger backup is smaller.

    Raises:
        ValueError: the instant has no time zone, or is not between 1970 and 2286.
    """
    if created_at.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    at = created_at.astimezone(UTC)
    since_ms = (at - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= since_ms <= _LAST_MS:
        raise ValueError("an instant between 1970 and 2286 is needed")
    stamp = f"{at:%Y%m%dT%H%M%S}{at.microsecond // 1000:03d}Z"
    return f"{_LAST_MS - since_ms:013d}-{stamp}-{_checked_id(backup_id)}"


def index_entry(tenant: str, sandbox: str, created_at: datetime, backup_id: str) -> str:
    """The key of a backup's index entry."""
    return index_prefix(tenant, sandbox) + entry_name(created_at, backup_id)


def is_entry_name(name: str) -> bool:
    """True if `name` can be the last segment of an index entry's key."""
    return _ENTRY_PATTERN.fullmatch(name) is not None


def is_name(value: str) -> bool:
    """True if `value` can be a sandbox's or a tenant's name."""
    return _NAME_PATTERN.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """The key of an index entry, taken apart."""

    key: str
    tenant: str
    sandbox: str
    backup_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class BackupObject:
    """The key of an object under `backups/`, taken apart."""

    key: str
    backup_id: str
    is_metadata: bool
    is_listing: bool = False


@dataclass(frozen=True, slots=True)
class LayerObject:
    """The key of a layer's archive, of a reference (with `backup_id`), or of a mark (with `run`), taken apart."""

    key: str
    tenant: str
    sha256: str
    backup_id: str | None
    run: str | None


def find_layer_object(key: str) -> LayerObject | None:
    """Reads the key of a layer, a reference or a mark; None for any other key."""
    found = _LAYER_PATTERN.fullmatch(key)
    return LayerObject(key, found["tenant"], found["sha256"], found["backup"], found["run"]) if found else None


def find_index_entry(key: str) -> IndexEntry | None:
    """Reads an index entry's key; None for any other key."""
    found = _INDEX_PATTERN.fullmatch(key)
    if found is None or found["tenant"] == DEFAULT_TENANT:
        return None
    created_at = _EPOCH + timedelta(milliseconds=_LAST_MS - int(found["left"]))
    return IndexEntry(key, found["tenant"] or DEFAULT_TENANT, found["sandbox"], found["backup"], created_at)


def find_backup_object(key: str) -> BackupObject | None:
    """Reads the key of an archive, of metadata or of a listing; None for any other key."""
    found = _BACKUP_PATTERN.fullmatch(key)
    if found is None:
        return None
    return BackupObject(key, found["backup"], found["file"] == "meta.json", found["file"] == "files.list")
