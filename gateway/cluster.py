"""The cluster as the gateway needs it: protocols, and their implementation through Ray.

The protocols are the asynchronous half of `actors.client`: a `Call` is an awaitable, a `Stream` iterates.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Protocol, TypeVar

from actors.metrics import ClusterMetrics
from actors.models import (
    BackupFilePage,
    BackupInfo,
    BackupOptions,
    BackupPage,
    ChangesPage,
    DirectoryBackup,
    EventList,
    ExecEvent,
    ExecRequest,
    FileEntry,
    ForgetOptions,
    ForgetResult,
    ForkOptions,
    ForkResult,
    Operation,
    RestoreBackupResult,
    RestoreOptions,
    Retention,
    RetentionReport,
    RetentionRun,
    SandboxInfo,
    SandboxPage,
)

T_co = TypeVar("T_co", covariant=True)


class ItemStream(Protocol[T_co]):
    """A call that answers with many items; it can be iterated once. Errors appear at the first item or later."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    def close(self) -> None:
        """Tells the other side to stop producing. Returns at once; harmless after the stream has ended."""


class Uploading(Protocol):
    """A transfer into a sandbox, ended by `commit`."""

    def send(self, data: bytes) -> Awaitable[None]: ...
    def commit(self) -> Awaitable[None]: ...
    def abort(self) -> Awaitable[None]: ...


class SandboxPort(Protocol):
    """The calls to one sandbox; `actors.client.SandboxCalls` says what each promises and raises."""

    def create_backup(
        self, options: BackupOptions, *, idempotency_key: str | None = ...
    ) -> Awaitable[DirectoryBackup]: ...
    def restore_backup(self, options: RestoreOptions) -> Awaitable[RestoreBackupResult]: ...
    def forget(self, options: ForgetOptions) -> Awaitable[ForgetResult]: ...
    def destroy(self) -> Awaitable[None]: ...
    def exec(self, request: ExecRequest) -> ItemStream[ExecEvent]: ...
    def read_file(self, path: str) -> ItemStream[bytes]: ...
    def write_file(self, path: str) -> Awaitable[Uploading]: ...
    def delete_file(self, path: str) -> Awaitable[None]: ...
    def list_files(self, path: str) -> Awaitable[list[FileEntry]]: ...
    def changes_since(
        self, backup_id: str, *, dir: str | None = ..., limit: int = ..., cursor: str | None = ...
    ) -> Awaitable[ChangesPage]: ...
    def persist(self, *, excludes: Sequence[str] = ...) -> ItemStream[bytes]: ...
    def hydrate(self) -> Awaitable[Uploading]: ...
    def info(self) -> Awaitable[SandboxInfo]: ...
    def awake(self) -> Awaitable[bool]: ...
    def exists(self) -> Awaitable[bool]: ...
    def operation(self) -> Awaitable[Operation | None]: ...
    def cancel(self) -> Awaitable[bool]: ...
    def events(self, *, limit: int = ...) -> Awaitable[EventList]: ...
    def set_labels(self, labels: Mapping[str, str]) -> Awaitable[dict[str, str]]: ...
    def retention(self) -> Awaitable[Retention]: ...
    def set_retention(self, policy: Retention) -> Awaitable[Retention]: ...
    def apply_retention(self, options: RetentionRun) -> Awaitable[RetentionReport]: ...
    def backups(self, *, limit: int = ..., cursor: str | None = ...) -> Awaitable[BackupPage]: ...


class ServicePort(Protocol):
    """The calls that concern a whole tenant; see `actors.client.ServiceCalls`."""

    def ready(self) -> Awaitable[tuple[str, ...]]: ...
    def create_sandbox(self, *, labels: Mapping[str, str] | None = ...) -> Awaitable[str]: ...
    def sandboxes(self, *, limit: int = ..., cursor: str | None = ...) -> Awaitable[SandboxPage]: ...
    def backup(self, backup_id: str) -> Awaitable[BackupInfo]: ...
    def backup_files(
        self,
        backup_id: str,
        path: str = ...,
        *,
        recursive: bool = ...,
        limit: int = ...,
        cursor: str | None = ...,
    ) -> Awaitable[BackupFilePage]: ...
    def backup_changes(
        self, before: str, after: str, *, limit: int = ..., cursor: str | None = ...
    ) -> Awaitable[ChangesPage]: ...
    def delete_backup(self, backup_id: str) -> Awaitable[None]: ...
    def adopt(self, backup_id: str) -> Awaitable[BackupInfo]: ...
    def fork(
        self, backup_id: str, options: ForkOptions, *, idempotency_key: str | None = ...
    ) -> Awaitable[ForkResult]: ...
    def flatten(self, backup_id: str) -> Awaitable[BackupInfo]: ...
    def metrics(self) -> Awaitable[ClusterMetrics]: ...


class Cluster(Protocol):
    """Source of the calls to sandboxes and to the service. `sandbox` and `service` return at once."""

    def connect(self) -> None:
        """Connects; called once, before the first request. Raises ServiceUnavailableError."""

    def sandbox(self, tenant: str, sandbox_id: str) -> SandboxPort: ...
    def service(self, tenant: str) -> ServicePort: ...


class RayCluster:
    """The Ray cluster that this process joins, or is part of already."""

    def __init__(self, *, address: str | None = None) -> None:
        self._address = address

    def connect(self) -> None:
        """Joins the cluster. Raises ServiceUnavailableError."""
        from actors.rpc.cluster import connect

        connect(self._address)

    def sandbox(self, tenant: str, sandbox_id: str) -> SandboxPort:
        """The calls to one sandbox. Raises InvalidRequestError."""
        from actors.client import SandboxCalls

        return SandboxCalls(sandbox_id, tenant=tenant)

    def service(self, tenant: str) -> ServicePort:
        """The calls that concern a whole tenant."""
        from actors.client import ServiceCalls

        return ServiceCalls(tenant=tenant)
