"""The Python client: sandboxes for code that runs in the cluster. Needs Ray and these models; no HTTP, no S3 keys.

    from actors.client import get_sandbox

    box = get_sandbox("user-123")
    backup = box.create_backup("/workspace", name="before upgrade", ttl=3600)
    box.exec(["sh", "-c", "rm -rf src"])
    box.restore_backup(backup)

`Sandbox` blocks. `box.calls` offers the same as `Call`s and `Stream`s for code on an event loop, and
`box.actor` is the raw handle for ObjectRefs.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from actors.errors import ExecStoppedError, InvalidBackupConfigError, InvalidRequestError
from actors.metrics import ClusterMetrics
from actors.models import (
    DEFAULT_TENANT,
    DEFAULT_TTL_S,
    MAX_TIMEOUT_MS,
    TRANSFER_BYTES,
    BackupInfo,
    BackupOptions,
    BackupPage,
    Check,
    Compression,
    DirectoryBackup,
    EventList,
    ExecEvent,
    ExecRequest,
    ExecResult,
    Exit,
    FileEntry,
    FileMode,
    ForgetOptions,
    ForgetResult,
    GcReport,
    IdempotencyKey,
    LabelChange,
    LifecycleOptions,
    LifecycleReport,
    Model,
    NewSandbox,
    Operation,
    PageOptions,
    Recovery,
    RestoreBackupResult,
    RestoreMode,
    RestoreOptions,
    SandboxEvent,
    SandboxId,
    SandboxInfo,
    SandboxPage,
    TenantName,
    exclude_patterns,
    listed,
    validated,
    writable_path,
)
from actors.rpc import cluster_health
from actors.rpc.actor_ref import ActorRef
from actors.rpc.calls import Call, Steps, Stream
from actors.rpc.cluster import connect
from actors.rpc.names import EXEC, FILES, MAILBOX, READS, SERVICE_NAME, sandbox_actor_name


class _Address(Model):
    sandbox: SandboxId
    tenant: SandboxId


class Upload:
    """A transfer into a sandbox: call `send` any number of times, then `commit`.

    A file becomes visible when `commit` has ended, and not before. A tar archive is unpacked by `commit`.
    """

    def __init__(self, actor: ActorRef, opened: str) -> None:
        self._actor = ActorRef(actor.name, create=_without_actor)  # the transfer ends with its actor
        self._id = opened

    def send(self, data: bytes) -> Call[None]:
        """Sends the next bytes, at most `TRANSFER_BYTES` at a time."""
        return Call(lambda: self._actor.call(lambda actor: actor.send.remote(self._id, data)))

    def commit(self) -> Call[None]:
        """Makes the whole file visible at once, or unpacks the tar archive."""
        return Call(lambda: self._actor.call(lambda actor: actor.commit.remote(self._id)))

    def abort(self) -> Call[None]:
        """Discards what was sent. Does not fail if the transfer has ended."""
        return Call(lambda: self._actor.call_if_alive(lambda actor: actor.abort.remote(self._id), None))


def _without_actor(lane: str | None, cached_backup_id: str | None) -> Steps[Any]:
    raise ExecStoppedError("The transfer has ended, with the sandbox's actor.")


class SandboxCalls:
    """Every call to one sandbox, as `Call`s and `Stream`s. Calls create the sandbox, except `cancel` and questions."""

    def __init__(self, sandbox_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        address = validated(_Address, {"sandbox": sandbox_id, "tenant": tenant})
        self.id = address.sandbox
        self.tenant = address.tenant
        self.service = ServiceCalls(tenant=tenant)
        self.actor = ActorRef(sandbox_actor_name(tenant, sandbox_id), create=self._create)

    def _create(self, lane: str | None, cached_backup_id: str | None) -> Steps[tuple[Any, int]]:
        actor, restarts = yield from self.service.actor.call(
            lambda service: service.spawn.remote(self.tenant, self.id, lane, cached_backup_id)
        )
        return actor, restarts

    def _call(self, lane: str, send: Callable[[Any], Any], *, cached_backup_id: str | None = None) -> Call[Any]:
        return Call(lambda: self.actor.call(send, lane=lane, cached_backup_id=cached_backup_id))

    def create_backup(self, options: BackupOptions, *, idempotency_key: str | None = None) -> Call[DirectoryBackup]:
        """Archives a directory and uploads it. With a key, a repeated call returns the first call's backup.

        Raises:
            InvalidBackupConfigError: permanent; nothing was changed.
            BackupCreateError, NoSpaceError, OperationCancelledError: nothing is left of the backup, unless the context
                says that the outcome is unknown.
            SandboxUnavailableError: the outcome is unknown; repeat with the same key, or look at the list of backups.
        """
        if idempotency_key is not None:
            validated(IdempotencyKey, {"key": idempotency_key}, InvalidBackupConfigError)
        return self._call(MAILBOX, lambda actor: actor.create_backup.remote(options, idempotency_key))

    def restore_backup(self, options: RestoreOptions) -> Call[RestoreBackupResult]:
        """Restores a backup of the same tenant into a directory of this sandbox.

        Raises:
            InvalidBackupConfigError, BackupNotFoundError, BackupExpiredError: permanent; nothing was changed.
            BackupRestoreError, NoSpaceError, OperationCancelledError: the directory is as it was.
            SandboxUnavailableError: the directory shows the old content or the new, never a mix.
        """
        return self._call(MAILBOX, lambda actor: actor.restore_backup.remote(options), cached_backup_id=options.id)

    def forget(self, options: ForgetOptions) -> Call[ForgetResult]:
        """Drops directories that could not be recovered; the sandbox then serves calls without them. Repeatable.

        Their backups stay, and can be restored if they become readable again.

        Raises:
            InvalidRequestError: a directory is not missing; nothing was changed.
            SandboxUnavailableError: the missing directories cannot be determined now.
        """
        return self._call(MAILBOX, lambda actor: actor.forget.remote(options))

    def destroy(self) -> Call[None]:
        """Ends the sandbox and removes its files and state. Its backups stay. Repeatable."""

        def steps() -> Steps[None]:
            yield from self.actor.call(lambda actor: actor.destroy.remote(), lane=MAILBOX)
            yield from self.actor.call_if_alive(lambda actor: actor.leave.remote(0.0), None)

        return Call(steps)

    def exec(self, request: ExecRequest) -> Stream[ExecEvent]:
        """Runs a command; yields `Output`s as they come and `Exit` last. Closing the stream stops the command.

        Raises:
            InvalidRequestError: argv and env are longer than the node accepts.
            FileNotFoundInSandboxError, PathForbiddenError: the working directory cannot be entered.
            SandboxUnavailableError: the node could not start the command, or ended its box; the context has the reason.
            ExecError: the command was ended from outside; the subclass says how.
        """
        return self._stream(EXEC, lambda actor, name: actor.exec.remote(name, request))

    def read_file(self, path: str) -> Stream[bytes]:
        """The bytes of a regular file. Raises FileNotFoundInSandboxError, PathForbiddenError, NotARegularFileError."""
        inside = writable_path(path)
        return self._stream(READS, lambda actor, name: actor.read_file.remote(name, inside))

    def write_file(self, path: str, *, mode: int | None = None) -> Call[Upload]:
        """Begins to write a file, and creates its parents; `commit` replaces it atomically. Raises as `read_file`."""
        inside, wanted = writable_path(path), validated(FileMode, {"mode": mode}).mode
        return self._upload(lambda actor: actor.open_file.remote(inside, wanted))

    def delete_file(self, path: str) -> Call[None]:
        """Removes a file, a link or an empty directory. Raises as `read_file`."""
        inside = writable_path(path)
        return self._call(FILES, lambda actor: actor.delete_file.remote(inside))

    def list_files(self, path: str) -> Call[list[FileEntry]]:
        """The entries of a directory, sorted by name."""
        inside = writable_path(path)
        return self._call(FILES, lambda actor: actor.list_files.remote(inside))

    def persist(self, *, excludes: Sequence[str] = ()) -> Stream[bytes]:
        """A tar archive of /workspace, without the files that the patterns exclude, as in a backup.

        Raises:
            InvalidRequestError: a pattern has a flaw (`ignore_patterns.Flaw`).
            SandboxUnavailableError: the node could not make the archive, or files became shorter meanwhile.
        """
        patterns = exclude_patterns(excludes)
        return self._stream(READS, lambda actor, name: actor.persist.remote(name, patterns))

    def hydrate(self) -> Call[Upload]:
        """Begins a transfer of a tar archive into /workspace. If unpacking ends early, files unpacked so far stay."""
        return self._upload(lambda actor: actor.open_hydrate.remote())

    def _stream(self, lane: str, send: Callable[[Any, str], Any]) -> Stream[Any]:
        name = uuid.uuid4().hex
        return Stream(
            lambda: self.actor.stream(lambda actor: send(actor, name), lane=lane),
            on_close=lambda: Call(lambda: self.actor.call_if_alive(lambda actor: actor.stop.remote(name), None)),
        )

    def _upload(self, send: Any) -> Call[Upload]:
        def steps() -> Steps[Upload]:
            return Upload(self.actor, (yield from self.actor.call(send, lane=FILES)))

        return Call(steps)

    def info(self) -> Call[SandboxInfo]:
        """The sandbox's current description. Neither wakes nor creates it. Raises SandboxNotFoundError."""

        def steps() -> Steps[SandboxInfo]:
            info = yield from self.actor.call_if_alive(lambda actor: actor.info.remote(), None)
            if info is None:
                info = yield from self.service.actor.call(lambda service: service.describe.remote(self.tenant, self.id))
            return info  # type: ignore[no-any-return]

        return Call(steps)

    def awake(self) -> Call[bool]:
        """Tells whether the sandbox has a living actor. Neither wakes nor creates it."""
        return Call(lambda: self.actor.call_if_alive(lambda actor: actor.ping.remote(), False))

    def exists(self) -> Call[bool]:
        """Tells whether a sandbox of this name exists, awake or not: the next call finds its files.

        Neither wakes nor creates it. Raises StorageUnavailableError or SandboxUnavailableError if that is not known.
        """

        def steps() -> Steps[bool]:
            if (yield from self.actor.call_if_alive(lambda actor: actor.ping.remote(), False)):
                return True
            exists: bool = yield from self.service.actor.call(
                lambda service: service.exists.remote(self.tenant, self.id)
            )
            return exists

        return Call(steps)

    def operation(self) -> Call[Operation | None]:
        """The running backup or restore, with its progress; None if none runs. Answers in milliseconds."""
        return Call(lambda: self.actor.call_if_alive(lambda actor: actor.operation.remote(), None))

    def cancel(self) -> Call[bool]:
        """Cancels the running backup or restore. False if none runs, or if it can no longer be cancelled."""
        return Call(lambda: self.actor.call_if_alive(lambda actor: actor.cancel.remote(), False))

    def events(self, *, limit: int = 100) -> Call[EventList]:
        """The sandbox's latest events, newest first. Neither wakes nor creates it."""
        most = validated(PageOptions, {"limit": limit}).limit
        return Call(lambda: self.service.actor.call(lambda service: service.events.remote(self.tenant, self.id, most)))

    def set_labels(self, labels: Mapping[str, str]) -> Call[dict[str, str]]:
        """Replaces all labels of the sandbox with these; returns them. Does not wake it, but creates it."""
        wanted = validated(NewSandbox, {"labels": dict(labels)}).labels
        return self._relabel(lambda service: service.set_labels.remote(self.tenant, self.id, wanted))

    def change_labels(
        self, labels: Mapping[str, str] | None = None, *, removed: Sequence[str] = ()
    ) -> Call[dict[str, str]]:
        """Sets some labels and removes others, whether or not they are there; returns all labels after the change."""
        wanted = validated(LabelChange, {"labels": dict(labels or {}), "removed": listed("removed", removed)})
        return self._relabel(
            lambda service: service.change_labels.remote(self.tenant, self.id, wanted.labels, wanted.removed)
        )

    def _relabel(self, send: Callable[[Any], Any]) -> Call[dict[str, str]]:
        def steps() -> Steps[dict[str, str]]:
            labels: dict[str, str] = yield from self.service.actor.call(send)
            yield from self.actor.call_if_alive(lambda actor: actor.relabel.remote(), None)
            return labels

        return Call(steps)

    def backups(self, *, limit: int = 100, cursor: str | None = None) -> Call[BackupPage]:
        """One page of the sandbox's backups, newest first. Neither wakes nor creates it."""
        page = validated(PageOptions, {"limit": limit, "cursor": cursor})
        return Call(
            lambda: self.service.actor.call(
                lambda service: service.backups.remote(self.tenant, self.id, page.limit, page.cursor)
            )
        )


class ServiceCalls:
    """The calls that concern a whole tenant or the whole bucket."""

    def __init__(self, *, tenant: str = DEFAULT_TENANT) -> None:
        self.tenant = validated(TenantName, {"tenant": tenant}).tenant
        self.actor = ActorRef(SERVICE_NAME, repeatable=True)

    def _call(self, send: Any) -> Call[Any]:
        return Call(lambda: self.actor.call(send))

    def ready(self) -> Call[tuple[str, ...]]:
        """Returns once a call would succeed: the cluster's control store, the service and the bucket answer.

        The result has a sentence for each full disk, on which some calls would fail.
        """

        def steps() -> Steps[tuple[str, ...]]:
            yield cluster_health.check
            warnings: tuple[str, ...] | None = yield from self.actor.call(lambda service: service.ready.remote())
            return warnings or ()  # a service of an earlier release returns None

        return Call(steps)

    def create_sandbox(self, *, labels: Mapping[str, str] | None = None) -> Call[str]:
        """Creates a sandbox with a random id; returns the id."""
        wanted = validated(NewSandbox, {"labels": dict(labels or {})}).labels
        return self._call(lambda service: service.create_sandbox.remote(self.tenant, wanted))

    def sandboxes(self, *, limit: int = 100, cursor: str | None = None) -> Call[SandboxPage]:
        """One page of the tenant's sandboxes."""
        page = validated(PageOptions, {"limit": limit, "cursor": cursor})
        return self._call(lambda service: service.sandboxes.remote(self.tenant, page.limit, page.cursor))

    def backup(self, backup_id: str) -> Call[BackupInfo]:
        """The metadata of one backup. Raises BackupNotFoundError, DocumentDamagedError, InvalidBackupConfigError."""
        return self._call(lambda service: service.backup.remote(self.tenant, backup_id))

    def delete_backup(self, backup_id: str) -> Call[None]:
        """Deletes a backup: first the metadata, then the archive. Repeatable.

        Raises BackupNotFoundError, DocumentDamagedError.
        """
        return self._call(lambda service: service.delete_backup.remote(self.tenant, backup_id))

    def adopt(self, backup_id: str, *, owner: str | None = None) -> Call[BackupInfo]:
        """Checks and signs an unsigned backup, such as one of Cloudflare's SDK; it becomes this tenant's or `owner`'s.

        Checks its archive, and signs its metadata. Repeatable. Unsigned backups belong to the default tenant, so only
        that tenant can give one away. Raises BackupNotFoundError, BackupExpiredError, BackupRestoreError.
        """
        return self._call(lambda service: service.adopt.remote(self.tenant, backup_id, owner))

    def delete_damaged_backup(self, backup_id: str) -> Call[None]:
        """Deletes any tenant's backup whose metadata is damaged or was tampered with. Raises as `delete_backup`."""
        return self._call(lambda service: service.delete_damaged_backup.remote(backup_id))

    def collect(self, *, dry_run: bool = False) -> Call[GcReport]:
        """Deletes expired and orphaned objects of the bucket."""
        return self._call(lambda service: service.collect.remote(dry_run))

    def lifecycle(self, *, expire_days: int | None = None) -> Call[LifecycleReport]:
        """Shows the bucket's lifecycle rules, or with `expire_days` installs them."""
        wanted = validated(LifecycleOptions, {"expire_days": expire_days}).expire_days
        return self._call(lambda service: service.lifecycle.remote(wanted))

    def metrics(self) -> Call[ClusterMetrics]:
        """The counts of all actors of the cluster, and its load."""
        return self._call(lambda service: service.metrics.remote())

    def doctor(self) -> Call[list[Check]]:
        """Checks what the service's node offers."""
        return self._call(lambda service: service.doctor.remote())


class Sandbox:
    """One sandbox, for code that may block. See `SandboxCalls` for what each call promises and raises."""

    def __init__(self, sandbox_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        self.calls = SandboxCalls(sandbox_id, tenant=tenant)

    @property
    def id(self) -> str:
        """The sandbox's name."""
        return self.calls.id

    @property
    def notice(self) -> Recovery | None:
        """The sandbox's recovery after the loss of its node, if the actor reported one to this object; else None."""
        return self.calls.actor.heard

    @property
    def actor(self) -> Any:
        """The raw Ray handle; creates the actor if there is none. Ray wraps its errors."""
        return Call(self.calls.actor.get).result()

    def create_backup(
        self,
        dir: str,
        *,
        name: str | None = None,
        ttl: float = DEFAULT_TTL_S,
        excludes: Sequence[str] = (),
        gitignore: bool = False,
        compression: Compression | None = None,
        idempotency_key: str | None = None,
    ) -> DirectoryBackup:
        """Backs a directory up.

        Args:
            dir: absolute, at or under a writable root.
            name: for people; at most 256 characters.
            ttl: seconds until it expires.
            excludes: patterns as in a .gitignore file in the directory. They override git's own rules.
            gitignore: also leave out what git ignores; files that git tracks are kept.
            compression: zstd at level 1 if not given.
            idempotency_key: a repeated call with the same key returns the first call's backup.
        """
        values = {
            "dir": dir,
            "name": name,
            "ttl": ttl,
            "excludes": listed("excludes", excludes, InvalidBackupConfigError),
            "gitignore": gitignore,
            "compression": compression or Compression(),
        }
        options = validated(BackupOptions, values, InvalidBackupConfigError)
        return self.calls.create_backup(options, idempotency_key=idempotency_key).result()

    def restore_backup(
        self, backup: DirectoryBackup, *, dir: str | None = None, mode: RestoreMode | str | None = None
    ) -> RestoreBackupResult:
        """Restores a backup, into `dir` if given. `RestoreOptions` describes the modes and their default."""
        if not isinstance(backup, DirectoryBackup):
            raise InvalidBackupConfigError("The backup must be the handle that create_backup returned.")
        values = {"id": backup.id, "dir": dir if dir is not None else backup.dir} | (
            {"mode": mode} if mode is not None else {}
        )
        return self.calls.restore_backup(validated(RestoreOptions, values, InvalidBackupConfigError)).result()

    def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "/workspace",
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> ExecResult:
        """Runs a command to its end and returns its output. A non-zero exit is a result, not an error."""
        output: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        for event in self.exec_stream(argv, cwd=cwd, env=env, timeout_s=timeout_s):
            if isinstance(event, Exit):
                return ExecResult(
                    exit_code=event.exit_code,
                    stdout=b"".join(output["stdout"]),
                    stderr=b"".join(output["stderr"]),
                )
            output[event.stream].append(event.data)
        raise AssertionError("a stream of a command ends with its exit or an error")

    def exec_stream(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "/workspace",
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[ExecEvent]:
        """Runs a command and yields its output as it comes."""
        if isinstance(argv, str):
            raise InvalidRequestError("argv must be a list of words; for a shell use ['sh', '-c', ...].")
        values: dict[str, Any] = {"argv": list(argv), "cwd": cwd, "env": dict(env or {})}
        if timeout_s is not None:
            values["timeout_ms"] = _milliseconds(timeout_s)
        return iter(self.calls.exec(validated(ExecRequest, values)))

    def read_file(self, path: str) -> bytes:
        """The whole content of a file; use `calls.read_file` for a file that does not fit into memory."""
        return b"".join(self.calls.read_file(path))

    def write_file(self, path: str, data: bytes | BinaryIO, *, mode: int | None = None) -> None:
        """Writes a file atomically."""
        _send(self.calls.write_file(path, mode=mode).result(), data)

    def delete_file(self, path: str) -> None:
        """Removes a file, a link or an empty directory."""
        self.calls.delete_file(path).result()

    def list_files(self, path: str = "/workspace") -> list[FileEntry]:
        """The entries of a directory, sorted by name."""
        return self.calls.list_files(path).result()

    def persist(self, *, excludes: Sequence[str] = ()) -> Iterator[bytes]:
        """A tar archive of /workspace, piece by piece. `excludes` are patterns as in a .gitignore file."""
        return iter(self.calls.persist(excludes=excludes))

    def hydrate(self, tar: bytes | BinaryIO) -> None:
        """Unpacks a tar archive into /workspace."""
        _send(self.calls.hydrate().result(), tar)

    def info(self) -> SandboxInfo:
        """The sandbox's current description. Neither wakes nor creates it."""
        return self.calls.info().result()

    def events(self, *, limit: int = 100) -> list[SandboxEvent]:
        """The sandbox's latest events, newest first. Neither wakes nor creates it."""
        return self.calls.events(limit=limit).result().events

    def set_labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Replaces all labels of the sandbox with these; returns them. Does not wake it."""
        return self.calls.set_labels(labels).result()

    def change_labels(self, labels: Mapping[str, str] | None = None, *, removed: Sequence[str] = ()) -> dict[str, str]:
        """Sets some labels and removes others; returns all labels after the change. Does not wake it."""
        return self.calls.change_labels(labels, removed=removed).result()

    def cancel(self) -> bool:
        """Cancels the running backup or restore; see `SandboxCalls.cancel`."""
        return self.calls.cancel().result()

    def backups(self) -> Iterator[BackupInfo]:
        """The sandbox's backups, newest first."""
        cursor: str | None = None
        while True:
            page = self.calls.backups(cursor=cursor).result()
            yield from page.backups
            cursor = page.cursor
            if cursor is None:
                return

    def forget(self, *dirs: str) -> ForgetResult:
        """Drops directories that could not be recovered; the sandbox then serves calls without them."""
        return self.calls.forget(validated(ForgetOptions, {"dir": list(dirs)})).result()

    def destroy(self) -> None:
        """Ends the sandbox and removes its files. Its backups stay."""
        self.calls.destroy().result()


def get_sandbox(sandbox_id: str, *, tenant: str = DEFAULT_TENANT, address: str | None = None) -> Sandbox:
    """Returns the sandbox of this name. It exists as soon as it is used; nothing is created here.

    Args:
        sandbox_id: 1 to 128 characters of a-z, 0-9 and '-'.
        tenant: the owner of the sandbox; tenants share nothing.
        address: the Ray cluster, if this process has not joined one and RAY_ADDRESS does not name it.

    Raises:
        InvalidRequestError: the id is not valid.
        ServiceUnavailableError: no cluster answers.
    """
    connect(address)
    return Sandbox(sandbox_id, tenant=tenant)


def get_service(*, tenant: str = DEFAULT_TENANT, address: str | None = None) -> ServiceCalls:
    """Returns the calls that concern a whole tenant or the bucket. Raises as `get_sandbox`."""
    connect(address)
    return ServiceCalls(tenant=tenant)


def _milliseconds(timeout_s: float) -> int:
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not (is_number and 0 < timeout_s < math.inf):
        raise InvalidRequestError("timeout_s must be a finite number of seconds greater than 0.")
    return max(1, round(min(timeout_s, MAX_TIMEOUT_MS) * 1000))


def _send(upload: Upload, data: bytes | BinaryIO) -> None:
    try:
        for piece in _pieces(data):
            upload.send(piece).result()
    except BaseException:
        upload.abort().result()
        raise
    upload.commit().result()


def _pieces(data: bytes | BinaryIO) -> Iterable[bytes]:
    if isinstance(data, bytes):
        return (data[i : i + TRANSFER_BYTES] for i in range(0, len(data), TRANSFER_BYTES))
    return iter(lambda: data.read(TRANSFER_BYTES), b"")
