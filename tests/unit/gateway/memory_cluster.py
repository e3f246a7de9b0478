"""A fake cluster in memory, without Ray, for tests of the gateway and the command line."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from actors.client import Sandbox, ServiceCalls
from actors.errors import (
    BackupNotFoundError,
    CommandNotFoundError,
    FileNotFoundInSandboxError,
    HoldfastError,
    InvalidRequestError,
    SandboxNotFoundError,
)
from actors.metrics import ClusterMetrics, Tally
from actors.models import (
    BackupFile,
    BackupFilePage,
    BackupInfo,
    BackupOptions,
    BackupPage,
    ChangesPage,
    ContentsSource,
    DirectoryBackup,
    EventList,
    ExecEvent,
    ExecRequest,
    Exit,
    FileChange,
    FileEntry,
    FileKind,
    ForgetOptions,
    ForgetResult,
    Fork,
    ForkError,
    ForkOptions,
    ForkResult,
    GcReport,
    KeepReason,
    Operation,
    OperationKind,
    Output,
    Phase,
    RecoveredDirectory,
    RestoreBackupResult,
    RestoreOptions,
    RetainedBackup,
    Retention,
    RetentionChange,
    RetentionReport,
    RetentionRun,
    SandboxEvent,
    SandboxInfo,
    SandboxPage,
    SandboxRef,
    Started,
)

T = TypeVar("T")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Later(Generic[T]):
    """A call that runs only when it is awaited."""

    def __init__(self, act: Callable[[], T]) -> None:
        self._act = act

    def result(self) -> T:
        return self._act()

    def __await__(self) -> Generator[Any, None, T]:
        yield from asyncio.sleep(0).__await__()
        return self._act()


class Silence:
    """An item of a script: nothing more comes until the stream is closed."""


class MemoryStream(Generic[T]):
    """A stream of scripted items; raises those that are exceptions."""

    def __init__(self, script: Sequence[T | HoldfastError | Silence]) -> None:
        self._script = script
        self.closed = asyncio.Event()
        self.silent = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[T]:
        for item in self._script:
            await asyncio.sleep(0)
            if isinstance(item, HoldfastError):
                raise item
            if isinstance(item, Silence):
                self.silent.set()
                await asyncio.Event().wait()
            else:
                yield item

    def __iter__(self) -> Iterator[T]:
        for item in self._script:
            if isinstance(item, HoldfastError):
                raise item
            assert not isinstance(item, Silence), "nobody would ever wake a blocking reader"
            yield item

    def close(self) -> None:
        self.closed.set()


class MemoryUpload:
    def __init__(self, finish: Callable[[bytes], None]) -> None:
        self._finish = finish
        self.blocks: list[bytes] = []
        self.aborted = False

    def send(self, data: bytes) -> Later[None]:
        return Later(lambda: self.blocks.append(data))

    def commit(self) -> Later[None]:
        return Later(lambda: self._finish(b"".join(self.blocks)))

    def abort(self) -> Later[None]:
        return Later(lambda: setattr(self, "aborted", True))


class MemoryInput:
    """The input of a command, which takes `wanted` bytes and then no more."""

    def __init__(self, wanted: float = float("inf")) -> None:
        self.wanted = wanted
        self.pieces: list[bytes] = []
        self.heard_of = threading.Event()
        self.ended = threading.Event()
        self.cut_off = threading.Event()

    def send(self, data: bytes) -> Later[bool]:
        def act() -> bool:
            self.pieces.append(data)
            self.heard_of.set()
            return sum(map(len, self.pieces)) < self.wanted

        return Later(act)

    def end(self) -> Later[None]:
        return Later(self.ended.set)

    def cut(self) -> Later[None]:
        return Later(self.cut_off.set)


@dataclass
class MemorySandbox:
    """A fake sandbox; any command plays `script`, and a backup or a restore raises `failure` if there is one."""

    id: str
    tenant: MemoryTenant
    files: dict[str, bytes] = field(default_factory=dict)
    script: list[Started | ExecEvent | HoldfastError | Silence] = field(default_factory=list)
    inputs: dict[str, MemoryInput] = field(default_factory=dict)
    tar: list[bytes | HoldfastError | Silence] = field(default_factory=lambda: [b"tar", b"ball"])
    failure: BaseException | None = None
    current: Operation | None = None
    modes: dict[str, int] = field(default_factory=dict)
    used: bool = False
    asleep: bool = False
    asked: list[Any] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    policy: Retention = field(default_factory=Retention)
    missing: list[RecoveredDirectory] = field(default_factory=list)
    happened: list[SandboxEvent] = field(default_factory=list)
    streams: list[MemoryStream[Any]] = field(default_factory=list)
    uploads: list[MemoryUpload] = field(default_factory=list)
    on_cancel: Callable[[], None] = lambda: None
    while_backing_up: Callable[[], None] = lambda: None

    def create_backup(self, options: BackupOptions, *, idempotency_key: str | None = None) -> Later[DirectoryBackup]:
        def act() -> DirectoryBackup:
            self.used = True
            self.asked.append(options)
            self.current = Operation(
                id="1", kind=OperationKind.BACKUP, dir=options.dir, phase=Phase.COMPRESSING, started_at=NOW
            )
            try:
                self.while_backing_up()
                if self.failure is not None:
                    raise self.failure
            finally:
                self.current = None
            handle = DirectoryBackup(id=str(uuid.uuid4()), dir=options.dir)
            below = None if options.full else self.tenant.latest(self.id, options.dir)
            self.tenant.backups[handle.id] = BackupInfo(
                id=handle.id,
                dir=handle.dir,
                name=options.name,
                size_bytes=1,
                total_bytes=1 if below is None else (below.total_bytes or 0) + 1,
                depth=1 if below is None else (below.depth or 0) + 1,
                parent=None if below is None else below.id,
                ttl_s=options.ttl,
                created_at=NOW,
                expires_at=NOW + timedelta(seconds=options.ttl),
                expired=False,
                sandbox=self.id,
            )
            return handle

        return Later(act)

    def restore_backup(self, options: RestoreOptions) -> Later[RestoreBackupResult]:
        def act() -> RestoreBackupResult:
            self.used = True
            self.asked.append(options)
            if self.failure is not None:
                raise self.failure
            self.tenant.found(options.id)
            return RestoreBackupResult(dir=options.dir, id=options.id)

        return Later(act)

    def forget(self, options: ForgetOptions) -> Later[ForgetResult]:
        def act() -> ForgetResult:
            self.asked.append(options)
            if not set(options.dirs) <= {row.dir for row in self.missing}:
                raise InvalidRequestError("Not missing.", context={"dirs": options.dirs})
            return ForgetResult(forgotten=[row for row in self.missing if row.dir in options.dirs])

        return Later(act)

    def destroy(self) -> Later[None]:
        return Later(lambda: cast("None", self.tenant.sandboxes.pop(self.id, None)))

    def exec(self, request: ExecRequest) -> MemoryStream[Started | ExecEvent]:
        self.used = True
        self.asked.append(request)
        said: list[Started | ExecEvent | HoldfastError | Silence] = [
            Output(stream="stdout", data=b"hi\n"),
            Exit(exit_code=0),
        ]
        stream = MemoryStream[Started | ExecEvent](self.script or said)
        self.streams.append(stream)
        return stream

    def command_input(self, command_id: str) -> Later[MemoryInput]:
        def act() -> MemoryInput:
            if command_id not in self.inputs:
                raise CommandNotFoundError("No such command.")
            return self.inputs[command_id]

        return Later(act)

    def read_file(self, path: str) -> MemoryStream[bytes]:
        missing = FileNotFoundInSandboxError("No such file.", context={"path": path})
        stream = MemoryStream[bytes]([self.files[path]] if path in self.files else [missing])
        self.streams.append(stream)
        return stream

    def write_file(self, path: str, *, mode: int | None = None) -> Later[MemoryUpload]:
        return Later(lambda: self._opened(lambda data: self.files.__setitem__(path, data)))

    def delete_file(self, path: str) -> Later[None]:
        return Later(lambda: cast("None", self.files.pop(path)))

    def list_files(self, path: str) -> Later[list[FileEntry]]:
        return Later(
            lambda: [
                FileEntry(
                    name=name.rpartition("/")[2],
                    kind=FileKind.FILE,
                    size_bytes=len(data),
                    mode=self.modes.get(name, 0o644),
                    modified_at=NOW,
                )
                for name, data in sorted(self.files.items())
                if name.rpartition("/")[0] == path
            ]
        )

    def persist(self, *, excludes: Sequence[str] = ()) -> MemoryStream[bytes]:
        self.asked.append(list(excludes))
        return MemoryStream(self.tar)

    def hydrate(self) -> Later[MemoryUpload]:
        return Later(lambda: self._opened(lambda data: self.files.__setitem__("hydrated", data)))

    def changes_since(
        self, backup_id: str, *, dir: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Later[ChangesPage]:
        def act() -> ChangesPage:
            self.used = True
            self.asked.append((backup_id, dir, limit, cursor))
            return self.tenant.changed(backup_id, cursor)

        return Later(act)

    def info(self) -> Later[SandboxInfo]:
        def act() -> SandboxInfo:
            if not self.used:
                raise SandboxNotFoundError("No such sandbox.", context={"sandbox": self.id})
            return SandboxInfo(id=self.id, running=not self.asleep, created_at=NOW, labels=self.labels)

        return Later(act)

    def awake(self) -> Later[bool]:
        return Later(lambda: self.used and not self.asleep)

    def exists(self) -> Later[bool]:
        return Later(lambda: self.used)

    def operation(self) -> Later[Operation | None]:
        return Later(lambda: self.current)

    def cancel(self) -> Later[bool]:
        def act() -> bool:
            self.on_cancel()
            return self.current is not None

        return Later(act)

    def events(self, *, limit: int = 100) -> Later[EventList]:
        def act() -> EventList:
            if not self.used:
                raise SandboxNotFoundError("No such sandbox.", context={"sandbox": self.id})
            return EventList(events=self.happened[::-1][:limit])

        return Later(act)

    def set_labels(self, labels: Mapping[str, str]) -> Later[dict[str, str]]:
        def act() -> dict[str, str]:
            self.used = True
            self.labels = dict(labels)
            return self.labels

        return Later(act)

    def change_labels(
        self, labels: Mapping[str, str] | None = None, *, removed: Sequence[str] = ()
    ) -> Later[dict[str, str]]:
        kept = {key: value for key, value in self.labels.items() if key not in removed}
        return self.set_labels(kept | dict(labels or {}))

    def retention(self) -> Later[Retention]:
        return Later(lambda: self.policy)

    def set_retention(self, policy: Retention) -> Later[Retention]:
        def act() -> Retention:
            for backup_id in policy.pinned:
                self.tenant.found(backup_id)
            self.used = True
            self.policy = policy
            return policy

        return Later(act)

    def change_retention(self, change: RetentionChange) -> Later[Retention]:
        return self.set_retention(Retention(**change.made_to(self.policy)))

    def apply_retention(self, options: RetentionRun) -> Later[RetentionReport]:
        def act() -> RetentionReport:
            self.asked.append(options)
            policy = options.policy or self.policy
            rows = [RetainedBackup(id=b.id, dir=b.dir, created_at=NOW) for b in self.tenant.backups.values()]
            most = policy.keep_last or len(rows)
            kept = [row.model_copy(update={"reasons": [KeepReason.LAST]}) for row in rows[:most]]
            gone = [each for each in policy.pinned if each not in self.tenant.backups]
            return RetentionReport(
                dry_run=options.dry_run, policy=policy, kept=kept, deleted=rows[most:], missing_pins=gone
            )

        return Later(act)

    def backups(self, *, limit: int = 100, cursor: str | None = None) -> Later[BackupPage]:
        return Later(
            lambda: BackupPage(backups=[b for b in self.tenant.backups.values() if b.sandbox == self.id][:limit])
        )

    def _opened(self, finish: Callable[[bytes], None]) -> MemoryUpload:
        upload = MemoryUpload(finish)
        self.uploads.append(upload)
        return upload


@dataclass
class MemoryTenant:
    """A fake tenant: its sandboxes and backups, and its view of the service."""

    sandboxes: dict[str, MemorySandbox] = field(default_factory=dict)
    backups: dict[str, BackupInfo] = field(default_factory=dict)
    listing: list[BackupFile] = field(default_factory=list)
    changes: list[FileChange] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    not_ready: Exception | None = None
    warnings: tuple[str, ...] = ()
    fork_keys: list[str | None] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    def found(self, backup_id: str) -> BackupInfo:
        if backup_id not in self.backups:
            raise BackupNotFoundError("No such backup.", context={"backup": backup_id})
        return self.backups[backup_id]

    def latest(self, sandbox_id: str, directory: str) -> BackupInfo | None:
        """The latest backup of a sandbox's directory, which the next one is made on."""
        made = [backup for backup in self.backups.values() if (backup.sandbox, backup.dir) == (sandbox_id, directory)]
        return made[-1] if made else None

    def flattened(self, backup_id: str) -> BackupInfo:
        """A full backup of what a backup holds."""
        found = self.found(backup_id)
        if found.depth == 1:
            return found
        whole = {"id": str(uuid.uuid4()), "size_bytes": found.total_bytes, "depth": 1, "parent": None}
        made = found.model_copy(update=whole)
        self.backups[made.id] = made
        return made

    def changed(self, backup_id: str, cursor: str | None) -> ChangesPage:
        """One change on each page."""
        self.found(backup_id)
        number = int(cursor or 0)
        rest = str(number + 1) if number + 1 < len(self.changes) else None
        return ChangesPage(changes=self.changes[number : number + 1], cursor=rest, partial=True)

    def listed(self, backup_id: str, path: str, cursor: str | None) -> BackupFilePage:
        """One file on each page."""
        self.found(backup_id)
        if path == "/missing":
            raise FileNotFoundInSandboxError("No such file.", context={"path": path})
        number = int(cursor or 0)
        rest = str(number + 1) if number + 1 < len(self.listing) else None
        return BackupFilePage(files=self.listing[number : number + 1], source=ContentsSource.LISTING, cursor=rest)

    def ready(self) -> Later[tuple[str, ...]]:
        def act() -> tuple[str, ...]:
            if self.not_ready is not None:
                raise self.not_ready
            return self.warnings

        return Later(act)

    def create_sandbox(self, *, labels: Mapping[str, str] | None = None) -> Later[str]:
        def act() -> str:
            box = MemorySandbox(uuid.uuid4().hex, self, labels=dict(labels or {}), used=True)
            self.sandboxes[box.id] = box
            return box.id

        return Later(act)

    def metrics(self) -> Later[ClusterMetrics]:
        def act() -> ClusterMetrics:
            if self.not_ready is not None:
                raise self.not_ready
            awake = sum(box.used for box in self.sandboxes.values())
            return ClusterMetrics(
                counts=self.tally.counts(), awake=awake, asleep=7, nodes=1, slots=10, free_slots=10 - awake
            )

        return Later(act)

    def sandboxes_page(self) -> SandboxPage:
        return SandboxPage(sandboxes=[SandboxRef(id=id, running=box.used) for id, box in self.sandboxes.items()])

    def delete_backup(self, backup_id: str) -> Later[None]:
        def act() -> None:
            del self.backups[self.found(backup_id).id]

        return Later(act)


class MemoryService:
    def __init__(self, tenant: MemoryTenant) -> None:
        self._tenant = tenant
        self.ready = tenant.ready
        self.create_sandbox = tenant.create_sandbox
        self.delete_backup = tenant.delete_backup
        self.metrics = tenant.metrics

    def sandboxes(self, *, limit: int = 100, cursor: str | None = None) -> Later[SandboxPage]:
        return Later(self._tenant.sandboxes_page)

    def backup(self, backup_id: str) -> Later[BackupInfo]:
        return Later(lambda: self._tenant.found(backup_id))

    def backup_files(
        self,
        backup_id: str,
        path: str = "/",
        *,
        recursive: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Later[BackupFilePage]:
        self._tenant.asked.append((backup_id, path, recursive, limit, cursor))
        return Later(lambda: self._tenant.listed(backup_id, path, cursor))

    def backup_changes(
        self, before: str, after: str, *, limit: int = 100, cursor: str | None = None
    ) -> Later[ChangesPage]:
        def act() -> ChangesPage:
            self._tenant.found(after)
            return self._tenant.changed(before, cursor)

        self._tenant.asked.append((before, after, limit, cursor))
        return Later(act)

    def adopt(self, backup_id: str, *, owner: str | None = None) -> Later[BackupInfo]:
        return Later(lambda: self._tenant.found(backup_id))

    def fork(self, backup_id: str, options: ForkOptions, *, idempotency_key: str | None = None) -> Later[ForkResult]:
        """Makes the sandboxes; those whose names begin with "bad" have failed."""
        self._tenant.fork_keys.append(idempotency_key)
        names = options.sandboxes or [f"fork-{number}" for number in range(1, (options.count or 0) + 1)]
        error = ForkError(code="NO_SPACE", error="The disk is full.")

        def act() -> ForkResult:
            directory = options.dir or self._tenant.found(backup_id).dir or ""
            forks = [
                Fork(id=name, success=False, error=error) if name.startswith("bad") else Fork(id=name, success=True)
                for name in names
            ]
            return ForkResult(
                success=all(row.success for row in forks), backup_id=backup_id, dir=directory, forks=forks
            )

        return Later(act)

    def flatten(self, backup_id: str) -> Later[BackupInfo]:
        return Later(lambda: self._tenant.flattened(backup_id))

    def collect(self, *, dry_run: bool = False) -> Later[GcReport]:
        return Later(lambda: GcReport(dry_run=dry_run))


class MemoryCluster:
    """Both the gateway's `Cluster` and, through `doors`, the command line's."""

    def __init__(self) -> None:
        self.tenants: dict[str, MemoryTenant] = {}
        self.connected = False

    def connect(self) -> None:
        self.connected = True

    def tenant(self, name: str) -> MemoryTenant:
        return self.tenants.setdefault(name, MemoryTenant())

    def sandbox(self, tenant: str, sandbox_id: str) -> MemorySandbox:
        owner = self.tenant(tenant)
        return owner.sandboxes.setdefault(sandbox_id, MemorySandbox(sandbox_id, owner))

    def service(self, tenant: str) -> MemoryService:
        return MemoryService(self.tenant(tenant))


class MemoryDoors:
    """The command line's way into a `MemoryCluster`: real `Sandbox` objects over calls in memory."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster

    def sandbox(self, sandbox_id: str, *, tenant: str, address: str | None, data_dir: Path | None) -> Sandbox:
        box = Sandbox(sandbox_id, tenant=tenant)
        box.calls = cast("Any", self._cluster.sandbox(tenant, sandbox_id))
        return box

    def service(self, *, tenant: str, address: str | None, data_dir: Path | None) -> ServiceCalls:
        return cast("ServiceCalls", self._cluster.service(tenant))
