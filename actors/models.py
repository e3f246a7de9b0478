"""The models that travel between clients, the gateway and the actors.

Imports pydantic, and nothing of ours but errors and the reading of patterns, which import nothing.

Everything here is strict: a number in a string, a boolean where a number is meant, or a field nobody
knows is refused, at whichever door it comes in.
"""

from __future__ import annotations

import math
import re
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, RootModel, Tag, ValidationError

from actors.errors import InvalidRequestError, PathForbiddenError
from actors.ignore_patterns import find_flaw

WRITABLE_ROOTS = ("/workspace", "/home", "/tmp", "/var/tmp", "/app")
DEFAULT_TENANT = "default"
DEFAULT_TTL_S = 259_200
MAX_NAME_LENGTH = 256
MAX_PATH_BYTES = 4096
MAX_EXCLUDES_BYTES = 64 * 1024
"""Of all patterns of one backup together: each is tried on every path while commands are paused."""
TRANSFER_BYTES = 1024 * 1024
"""Bytes per message of a file transfer: 5 ms each through Ray (measured), so some 200 MB/s with little memory."""

_ID_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,126}[a-z0-9])?")
_LABEL_KEY = re.compile(r"[a-zA-Z0-9._/-]{1,63}")
MAX_LABELS = 64
MAX_LABEL_LENGTH = 256
MAX_EXPIRE_DAYS = 100 * 366
MAX_PAGE = 1000
MAX_CURSOR_LENGTH = 1024
MAX_TIMEOUT_MS = 100 * 366 * 86_400_000
MAX_VARIABLES = 1024
"""Of a command's environment. A box is told of each by three words, and takes 9,000 in all. Source: bubblewrap 0.8."""
MAX_STRING_BYTES = 131_071
"""Of one argument or variable. Source: MAX_ARG_STRLEN of execve(2), which counts the NUL at its end."""
MAX_COMMAND_BYTES = 1_000_000
"""Of both together: half of what execve(2) takes with the usual limit of 8 MiB on the stack."""


def _identifier(value: str) -> str:
    if not _ID_PATTERN.fullmatch(value):
        raise ValueError("must be 1 to 128 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit")
    return value


def _absolute_path(value: str) -> str:
    if not isinstance(value, str):  # a Python caller's
        raise ValueError("must be text")
    if "\0" in value:
        raise ValueError("must not contain NUL")
    if not value.startswith("/"):
        raise ValueError("must be an absolute path")
    if len(value.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
        raise ValueError(f"must be at most {MAX_PATH_BYTES} bytes")
    path = PurePosixPath(value)
    if ".." in path.parts:
        raise ValueError("must not contain '..'")
    return "/" + str(path).lstrip("/")


def is_writable(path: str) -> bool:
    """True if a normalized absolute path is at or under one of the sandbox's writable roots."""
    return any(path == root or path.startswith(root + "/") for root in WRITABLE_ROOTS)


def writable_path(value: str) -> str:
    """A path inside a sandbox, normalized.

    Raises:
        InvalidRequestError: it is not an absolute, bounded path without '..' and NUL.
        PathForbiddenError: it is not at or under a writable root.
    """
    try:
        path = _absolute_path(value)
    except ValueError as e:
        raise InvalidRequestError(f"The path {e}.", context={"path": str(value)[:200]}) from None
    if not is_writable(path):
        raise PathForbiddenError(
            "The path is outside the sandbox's writable roots.",
            hint=f"Use a path at or under {', '.join(WRITABLE_ROOTS)}.",
            context={"path": path},
        )
    return path


def _backup_dir(value: str) -> str:
    path = _absolute_path(value)
    if not is_writable(path):
        raise ValueError(f"must be at or under one of {', '.join(WRITABLE_ROOTS)}")
    try:
        path.encode()
    except UnicodeEncodeError:  # the bucket's documents could not name it
        raise ValueError("must have a name in UTF-8; the directory above it can be named instead") from None
    return path


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


def _labels(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_LABELS:
        raise ValueError(f"must be at most {MAX_LABELS} labels")
    if not all(_LABEL_KEY.fullmatch(key) for key in value):
        raise ValueError("a label's key must be 1 to 63 characters of a-z, A-Z, 0-9, '.', '_', '/' and '-'")
    if not all(len(text) <= MAX_LABEL_LENGTH and text.isprintable() for text in value.values()):
        raise ValueError(f"a label's value must be at most {MAX_LABEL_LENGTH} printable characters")
    return value


SANDBOX_ID_SCHEMA = {"pattern": f"^{_ID_PATTERN.pattern}$"}
BACKUP_ID_SCHEMA = {"pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"}
"""The patterns of names in the descriptions of routes. The validators below decide."""
_DIR_SCHEMA = {"pattern": f"^({'|'.join(WRITABLE_ROOTS)})(/.*)?$"}
_LABELS_SCHEMA = {"propertyNames": {"pattern": f"^{_LABEL_KEY.pattern}$"}, "maxProperties": MAX_LABELS}

SandboxId = Annotated[str, AfterValidator(_identifier), Field(json_schema_extra=SANDBOX_ID_SCHEMA)]
BackupId = Annotated[str, AfterValidator(_backup_id), Field(json_schema_extra=BACKUP_ID_SCHEMA)]
BackupDir = Annotated[str, AfterValidator(_backup_dir), Field(json_schema_extra=_DIR_SCHEMA)]
SandboxPath = Annotated[str, AfterValidator(_absolute_path)]
LabelValues = Annotated[dict[str, str], AfterValidator(_labels), Field(json_schema_extra=_LABELS_SCHEMA)]
Count = Annotated[int, Field(ge=0)]


class Model(BaseModel):
    """The base of all models here: immutable, strict, closed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


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
    nothing is refused, where git would ignore it. `gitignore` leaves out what git ignores.
    """

    dir: BackupDir
    name: Annotated[str, AfterValidator(_backup_name)] | None = None
    ttl: Annotated[float, AfterValidator(_ttl)] = DEFAULT_TTL_S
    excludes: Annotated[
        list[Annotated[str, AfterValidator(_exclude)]], Field(max_length=1000), AfterValidator(_excludes)
    ] = []
    gitignore: bool = False
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


class RestoreBackupResult(Model):
    """The answer to a restore that succeeded; one that did not raises.

    `mode` is there only where none was asked for and the node can make copies only.
    """

    success: Literal[True] = True
    dir: str
    id: str
    mode: RestoreMode | None = None


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

    Of one that is listed though its metadata cannot be used, only what the list itself knows is there: the id, the
    sandbox and `created_at`.
    """

    id: str
    status: BackupStatus = BackupStatus.OK
    dir: str | None = None
    name: str | None = None
    size_bytes: Count | None = None
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


class PageOptions(Model):
    """The part of a list that is wanted: its first rows, or those after the page that gave `cursor`."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 100
    cursor: Annotated[str, Field(max_length=MAX_CURSOR_LENGTH)] | None = None


class FileMode(Model):
    """The permissions of a new file, as for chmod(2); None for the usual ones."""

    mode: Annotated[int, Field(ge=0, le=0o7777)] | None


class LifecycleOptions(Model):
    """After how many days the bucket itself deletes; None changes nothing."""

    expire_days: Annotated[int, Field(ge=1, le=MAX_EXPIRE_DAYS)] | None


class TenantName(Model):
    """Somebody to whom sandboxes and backups belong."""

    tenant: SandboxId


class BackupPage(Model):
    """One page of a sandbox's backups, newest first; `cursor` is absent on the last page."""

    backups: list[BackupInfo]
    cursor: str | None = None


class Phase(StrEnum):
    """The current phase of a running operation."""

    WAITING = "waiting"
    SCANNING = "scanning"
    COMPRESSING = "compressing"
    UPLOADING = "uploading"
    COMMITTING = "committing"
    DOWNLOADING = "downloading"
    CONVERTING = "converting"
    EXTRACTING = "extracting"
    MOUNTING = "mounting"


class OperationKind(StrEnum):
    """The operations that go through the mailbox."""

    BACKUP = "backup"
    RESTORE = "restore"
    RECOVER = "recover"
    DESTROY = "destroy"


class Operation(Model):
    """The operation that holds the mailbox. `done` of `total` counts `unit`s of the current phase."""

    id: str
    kind: OperationKind
    dir: str | None = None
    phase: Phase = Phase.WAITING
    done: Count = 0
    total: Count = 0
    unit: Literal["files", "bytes"] = "files"
    started_at: datetime


class OperationRecord(Model):
    """An operation that has ended. Times are UTC, read from one clock: the node's."""

    id: str
    kind: OperationKind
    dir: str | None = None
    backup_id: str | None = None
    started_at: datetime
    ended_at: datetime
    outcome: str = Field(description='"ok", or the code of the error')


class RestoredDirectory(Model):
    """A directory of the sandbox that came from a backup."""

    dir: str
    backup_id: str
    mode: RestoreMode
    driver: str | None = None
    restored_at: datetime


class Labels(RootModel[LabelValues]):
    """All labels of a sandbox: what its owner wants to know it by. Keys may look like `team/service.name`."""

    model_config = ConfigDict(frozen=True, strict=True)


class LabelChange(Model):
    """Labels to set, and keys of labels to remove, beside which all others stay."""

    labels: LabelValues = {}
    removed: Annotated[list[str], Field(max_length=MAX_LABELS)] = []


class NewSandbox(Model):
    """The options of a new sandbox."""

    labels: LabelValues = {}


class DirectoryStatus(StrEnum):
    """The outcome for a directory that was to be recovered.

    `missing`: the sandbox serves nobody until it is there or given up. `forgotten`: it was given up.
    """

    RESTORED = "restored"
    MISSING = "missing"
    FORGOTTEN = "forgotten"


class RecoveredDirectory(Model):
    """A directory that a recovery brought back as it was at `taken_at`; or did not, for the reason in `error`."""

    dir: str
    backup_id: str
    taken_at: datetime
    error: str | None = None
    status: DirectoryStatus = DirectoryStatus.RESTORED


class Recovery(Model):
    """The recovery of a sandbox after the node with its files was lost: with these directories, and nothing else.

    Each directory is as it was at its `taken_at`: what was changed in it since is gone. `lost` are the writable roots
    that had held something which was in no backup, and is gone. `told` says whether an answer to a call has carried the
    news, as a header or to a Python caller.
    """

    at: datetime
    lost_node: str | None = None
    directories: list[RecoveredDirectory] = []
    lost: list[str] = []
    told: bool = True

    @property
    def lacks_anything(self) -> bool:
        """True if something could not be recovered at all."""
        return bool(self.lost) or any(row.error for row in self.directories)


class ForgetResult(Model):
    """The answer to a `forget` that succeeded: the forgotten directories, and why each had not come back."""

    success: Literal[True] = True
    forgotten: list[RecoveredDirectory]


class SandboxEvent(Model):
    """Something that happened to a sandbox. `node` is the identity of the data folder in which its files were."""

    kind: str
    at: datetime
    dir: str | None = None
    backup_id: str | None = None
    node: str | None = None


class EventList(Model):
    """The latest events of a sandbox, newest first."""

    events: list[SandboxEvent]


class CommandLimits(Model):
    """The limits that are in force on all commands of a sandbox together; null for one that its node cannot set."""

    memory_bytes: Count | None
    processes: Count | None


class SandboxInfo(Model):
    """The description of a sandbox, awake or not.

    `last_used_at` may lag by as long as the service puts off writing it. `epoch` counts the actors it has had. `limits`
    is null while it is not awake.
    """

    id: str
    running: bool
    created_at: datetime
    last_used_at: datetime | None = None
    epoch: Count = 0
    labels: dict[str, str] = {}
    recovery: Recovery | None = None
    awake_since: datetime | None = None
    restored: list[RestoredDirectory] = []
    operation: Operation | None = None
    recent: list[OperationRecord] = []
    commands: Count = 0
    limits: CommandLimits | None = None


class SandboxRef(Model):
    """One row of the list of sandboxes."""

    id: str
    running: bool


class SandboxPage(Model):
    """One page of a tenant's sandboxes, in the order of their ids."""

    sandboxes: list[SandboxRef]
    cursor: str | None = None


class ExecRequest(Model):
    """A command. `argv` is passed as it is, without a shell; `timeout_ms` of None means the service's limit."""

    argv: Annotated[list[str], Field(min_length=1, max_length=4096)]
    timeout_ms: Annotated[int, Field(gt=0, le=MAX_TIMEOUT_MS)] | None = None
    cwd: SandboxPath = "/workspace"
    env: Annotated[dict[str, str], Field(max_length=MAX_VARIABLES)] = {}

    def model_post_init(self, context: Any, /) -> None:
        words = [*self.argv, *self.env, *self.env.values()]
        if any("\0" in word for word in words):
            raise ValueError("argv and env must not contain NUL")
        if not self.argv[0]:
            raise ValueError("the first word of argv must not be empty")
        if any(not name or "=" in name for name in self.env):
            raise ValueError("names in env must be non-empty and without '='")
        strings = [*self.argv, *(f"{name}={value}" for name, value in self.env.items())]
        lengths = [len(string.encode("utf-8", "surrogateescape")) for string in strings]
        if max(lengths) > MAX_STRING_BYTES:
            raise ValueError(f"each word of argv, and each NAME=value of env, must be at most {MAX_STRING_BYTES} bytes")
        if sum(lengths) > MAX_COMMAND_BYTES:
            raise ValueError(f"argv and env together must be at most {MAX_COMMAND_BYTES:,} bytes")


class Output(Model):
    """A piece of a command's output, as it came."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class Exit(Model):
    """The end of a command. A signal n gives 128 + n, as in a shell."""

    exit_code: int


ExecEvent: TypeAlias = Output | Exit


class ExecResult(Model):
    """A command's whole result, for callers that do not stream."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class FileKind(StrEnum):
    """The types of a directory entry."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


class FileEntry(Model):
    """One entry of a directory. A name that is not UTF-8 carries its raw bytes as surrogate escapes."""

    name: str
    kind: FileKind
    size_bytes: Count
    mode: int
    modified_at: datetime


class GcReport(Model):
    """The things that a collection removed (or, in a dry run, would remove)."""

    dry_run: bool
    expired_backups: list[str] = []
    orphaned_archives: list[str] = []
    stale_uploads: Count = 0
    stale_index_entries: Count = 0
    rebuilt_index_entries: Count = 0
    tampered: list[str] = Field([], description="backups whose signature is wrong; left alone")
    unsigned: list[str] = Field([], description="backups that nobody has signed, another program's; left alone")
    unreadable: list[str] = Field(
        [], description="backups (by id) and other documents (by key) that are damaged or a later release's; left alone"
    )
    without_archive: list[str] = Field([], description="backups whose archive is missing; left alone")
    freed_bytes: Count = 0


class LifecycleReport(Model):
    """The bucket's lifecycle rules, as far as they are Holdfast's."""

    installed: bool
    expire_days: int | None
    applied: bool


class Check(Model):
    """One line of `doctor`."""

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str | None = None


M = TypeVar("M", bound=BaseModel)
_KIND = re.compile(r"(function-\w+|list)\[.*\]|<\w+>")


def validated(model: type[M], values: Mapping[str, Any], error: type[InvalidRequestError] = InvalidRequestError) -> M:
    """Builds `model` from caller-supplied values, with the caller's kind of error.

    Raises:
        InvalidRequestError: (as `error`) naming each bad field and what is wrong with it.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as e:
        raise invalid(e, error) from None


def invalid(e: ValidationError, error: type[InvalidRequestError] = InvalidRequestError) -> InvalidRequestError:
    """One sentence and one context entry per field, out of pydantic's report; never the offending values."""
    fields: dict[str, str] = {}
    for line in e.errors():
        place, said = _place(line["loc"]) or "body", line["msg"].removeprefix("Value error, ")
        fields[place] = f"{fields[place]}, or {said}" if place in fields else said
    sentence = "; ".join(f"{name}: {message}" for name, message in fields.items())
    return error(f"Invalid request: {sentence}.", context={"fields": fields})


def _place(loc: tuple[int | str, ...]) -> str:
    """The field that an error is about, without the names of the kinds that it might have."""
    return ".".join(str(part) for part in loc if not _KIND.fullmatch(str(part)))


def exclude_patterns(values: Sequence[str], error: type[InvalidRequestError] = InvalidRequestError) -> list[str]:
    """The patterns that say what a tar archive leaves out: those of a backup's `excludes`.

    A path that begins with "./", as tar writes them, means one below the directory itself.

    Raises:
        InvalidRequestError: (as `error`) one of them is none.
    """
    anchored = [value[1:] if value.startswith("./") else value for value in listed("excludes", values, error)]
    return validated(BackupOptions, {"dir": WRITABLE_ROOTS[0], "excludes": anchored}, error).excludes


def listed(name: str, values: Sequence[str], error: type[InvalidRequestError] = InvalidRequestError) -> list[str]:
    """The values as a list. Raises `error` for text, which Python would take for the list of its letters."""
    if isinstance(values, str | bytes):
        raise error(f"Invalid request: {name}: must be a list of texts, not one text.", context={"field": name})
    return list(values)
