"""Backups: their options, handles and metadata, and what a restore takes and gives."""

from __future__ import annotations

import math
import unicodedata
import uuid
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from actors.errors import InvalidRequestError
from actors.ignore_patterns import find_flaw
from actors.models.base import Count, Model, listed, validated
from actors.models.paths import MAX_PATH_BYTES, WRITABLE_ROOTS, BackupDir

DEFAULT_TTL_S = 259_200
MAX_NAME_LENGTH = 256
MAX_EXCLUDES_BYTES = 64 * 1024
"""Of all patterns of one backup together: each is tried on every path while commands are paused."""


def _backup_name(value: str) -> str:
    if len(value) > MAX_NAME_LENGTH:
        raise ValueError(f"must be at most {MAX_NAME_LENGTH} characters")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        raise ValueError("must not contain control characters")
    return value


def _ttl(value: float) -> float:
    if not math.isfinite(value) or value <= 0:
        raise ValueError("must be a finite number of seconds greater than 0")
    if value > 100 * 366 * 86_400:
        raise ValueError("must be at most one hundred years")
    return value


def _backup_id(value: str) -> str:
    try:
        parsed = uuid.UUID(value)
    except ValueError:
        raise ValueError("must be a UUID") from None
    if str(parsed) != value.lower():
        raise ValueError("must be a UUID in its hyphenated form")
    return str(parsed)


def _exclude(value: str) -> str:
    try:
        path = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("must be text that UTF-8 can hold") from None
    if not path or b"\0" in path or b"\n" in path or len(path) > MAX_PATH_BYTES:
        raise ValueError(f"must be a pattern of 1 to {MAX_PATH_BYTES} bytes without NUL and newline")
    flaw = find_flaw(path.decode("latin-1"))
    if flaw is not None:
        raise ValueError(f'the pattern "{path[:200].decode("utf-8", "backslashreplace")}" is wrong: {flaw}')
    return value


def _excludes(values: list[str]) -> list[str]:
    if sum(len(value.encode("utf-8", "surrogateescape")) for value in values) > MAX_EXCLUDES_BYTES:
        raise ValueError(f"must be at most {MAX_EXCLUDES_BYTES} bytes together")
    return values


def _idempotency_key(value: str) -> str:
    if not 1 <= len(value) <= 200 or not value.isascii() or not value.isprintable():
        raise ValueError("must be 1 to 200 printable ASCII characters")
    return value


BACKUP_ID_SCHEMA = {"pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"}
"""The patterns of names in the descriptions of routes. The validators below decide."""
"""The pattern of ids in the descriptions of routes. The validator decides."""

BackupId = Annotated[str, AfterValidator(_backup_id), Field(json_schema_extra=BACKUP_ID_SCHEMA)]


class Compression(Model):
    """The compression of the archive.

    zstd level 1 is the default because it is faster than lz4 on real trees and 20 % smaller
    (482 MB, 17,420 files: 1.04 s and 169 MB against 1.41 s and 210 MB); zstd's own default of 15 takes 19 s.
    """

    format: Literal["zstd", "lz4", "gzip"] = "zstd"
    level: Annotated[int, Field(ge=1, le=22)] | None = None

    def model_post_init(self, context: Any, /) -> None:
        limit = {"zstd": 22, "gzip": 9, "lz4": None}[self.format]
        if self.level is not None and (limit is None or self.level > limit):
            raise ValueError(
                "lz4 has no levels" if limit is None else f"the level of {self.format} must be from 1 to {limit}"
            )


class BackupOptions(Model):
    """The options of `create_backup`. `ttl` is in seconds.

    `excludes` are patterns as in a .gitignore file that lies in the directory; a pattern that can match
    nothing is refused, where git would ignore it. `gitignore` leaves out what git ignores. `full` makes a backup that
    needs no layers of others; else an incremental one is made where that is possible.
    """

    dir: BackupDir
    name: Annotated[str, AfterValidator(_backup_name)] | None = None
    ttl: Annotated[float, AfterValidator(_ttl)] = DEFAULT_TTL_S
    excludes: Annotated[
        list[Annotated[str, AfterValidator(_exclude)]], Field(max_length=1000), AfterValidator(_excludes)
    ] = []
    gitignore: bool = False
    full: bool = False
    compression: Compression = Compression()


class IdempotencyKey(Model):
    """A name that a caller gives to one intended backup: asked for twice, it is made once."""

    key: Annotated[str, AfterValidator(_idempotency_key)]


class DirectoryBackup(Model):
    """The handle of a backup: all a client has to keep."""

    id: BackupId
    dir: BackupDir


class RestoreMode(StrEnum):
    """`overlay` mounts the archive under a writable layer; `copy` writes plain files."""

    OVERLAY = "overlay"
    COPY = "copy"


class RestoreOptions(Model):
    """A request to `restore_backup`: the handle, and how to restore it.

    Without a mode the backup is restored as an overlay, and as a copy on a node that cannot mount.
    """

    id: BackupId
    dir: BackupDir
    mode: Annotated[RestoreMode, Field(strict=False)] = RestoreMode.OVERLAY

    @property
    def asks_for_overlay(self) -> bool:
        """True if the caller named the mode, and it is an overlay: a copy would not do then."""
        return self.mode is RestoreMode.OVERLAY and "mode" in self.model_fields_set


class RestoreBackupResult(Model):
    """The answer to a restore that succeeded; one that did not raises.

    `mode` is there only where none was asked for and the node can make copies only.
    """

    success: Literal[True] = True
    dir: str
    id: str
    mode: RestoreMode | None = None


class ForgetOptions(Model):
    """The missing directories to forget: one, or several."""

    dir: Annotated[
        Annotated[BackupDir, Tag("<one>")]
        | Annotated[list[BackupDir], Field(min_length=1, max_length=128), Tag("<several>")],
        Discriminator(lambda value: "<several>" if isinstance(value, list) else "<one>"),
    ]

    @property
    def dirs(self) -> list[str]:
        """All of them."""
        return [self.dir] if isinstance(self.dir, str) else self.dir


class NotKept(Model):
    """Counts of what a squashfs archive cannot hold, made while the tree was walked.

    `devices` are left out, as `sockets` are. `far_times` are modification times before 1970 or after 2106, which
    change; `flags` files and directories with flags of chattr(1), which are lost.
    """

    sockets: Count = 0
    acls: Count = 0
    other_xattrs: Count = 0
    devices: Count = 0
    far_times: Count = 0
    flags: Count = 0


class BackupStatus(StrEnum):
    """The trust that a backup's metadata deserves.

    `unsigned`: another program's, such as Cloudflare's SDK; adopt it. `tampered`: somebody else than the service has
    changed it. `unreadable`: it is damaged. `newer`: a later release has written it.
    """

    OK = "ok"
    UNSIGNED = "unsigned"
    TAMPERED = "tampered"
    UNREADABLE = "unreadable"
    NEWER = "newer"


class BackupInfo(Model):
    """A backup as the service describes it. `created_at` and `expires_at` are UTC.

    An incremental backup shares layers with others: `size_bytes` is the size of its own, `total_bytes` that of all
    `depth` archives which a restore of it reads. `parent` is the backup that it was made on, and may be gone.

    Of one that is listed though its metadata cannot be used, only what the list itself knows is there: the id, the
    sandbox and `created_at`.
    """

    id: str
    status: BackupStatus = BackupStatus.OK
    dir: str | None = None
    name: str | None = None
    size_bytes: Count | None = None
    total_bytes: Count | None = None
    depth: Count | None = None
    parent: str | None = None
    ttl_s: float | None = None
    created_at: datetime
    expires_at: datetime | None = None
    expired: bool = False
    sandbox: str | None = None
    files: Count | None = None
    source_bytes: Count | None = None
    compression: str | None = None
    sha256: str | None = None
    not_kept: NotKept | None = None


class BackupPage(Model):
    """One page of a sandbox's backups, newest first; `cursor` is absent on the last page."""

    backups: list[BackupInfo]
    cursor: str | None = None


def exclude_patterns(values: Sequence[str], error: type[InvalidRequestError] = InvalidRequestError) -> list[str]:
    """The patterns that say what a tar archive leaves out: those of a backup's `excludes`.

    A path that begins with "./", as tar writes them, means one below the directory itself.

    Raises:
        InvalidRequestError: (as `error`) one of them is none.
    """
    anchored = [value[1:] if value.startswith("./") else value for value in listed("excludes", values, error)]
    return validated(BackupOptions, {"dir": WRITABLE_ROOTS[0], "excludes": anchored}, error).excludes
