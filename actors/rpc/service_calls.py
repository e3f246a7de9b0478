"""The calls to the service's actor, not sent yet: all that concerns a whole tenant or the whole bucket."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

from actors.errors import InvalidBackupConfigError
from actors.metrics import ClusterMetrics
from actors.models import (
    DEFAULT_TENANT,
    BackupFilePage,
    BackupFilesOptions,
    BackupInfo,
    ChangesPage,
    Check,
    ForkOptions,
    ForkOrder,
    ForkResult,
    GcReport,
    IdempotencyKey,
    LifecycleOptions,
    LifecycleReport,
    NewSandbox,
    PageOptions,
    SandboxPage,
    TenantName,
    validated,
)
from actors.rpc import cluster_health
from actors.rpc.actor_ref import ActorRef
from actors.rpc.calls import Call, Steps
from actors.rpc.names import SERVICE_NAME


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

    def backup_files(
        self,
        backup_id: str,
        path: str = "/",
        *,
        recursive: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Call[BackupFilePage]:
        """One page of what is in a directory of a backup, whose own directory is "/". Wakes and fetches nothing.

        With `recursive`, of what is in its directories, too. Of a path that is no directory, the page has the entry.

        Raises:
            BackupNotFoundError, FileNotFoundInSandboxError: there is no such backup, or no such path in it.
            BackupNotListedError: the backup has no listing, and its archive cannot be listed in place.
            DocumentDamagedError: the metadata or the listing is damaged, or was tampered with.
        """
        values = {"path": path, "recursive": recursive, "limit": limit, "cursor": cursor}
        wanted = validated(BackupFilesOptions, values)
        return self._call(lambda service: service.backup_files.remote(self.tenant, backup_id, wanted))

    def backup_changes(
        self, before: str, after: str, *, limit: int = 100, cursor: str | None = None
    ) -> Call[ChangesPage]:
        """One page of the changes from one backup to another. Raises as `backup_files`."""
        wanted = validated(PageOptions, {"limit": limit, "cursor": cursor})
        return self._call(lambda service: service.backup_changes.remote(self.tenant, before, after, wanted))

    def delete_backup(self, backup_id: str) -> Call[None]:
        """Deletes a backup: first the metadata, then the archive. Repeatable.

        Raises BackupNotFoundError, DocumentDamagedError.
        """
        return self._call(lambda service: service.delete_backup.remote(self.tenant, backup_id))

    def fork(self, backup_id: str, options: ForkOptions, *, idempotency_key: str | None = None) -> Call[ForkResult]:
        """Makes many sandboxes from one backup, each with an outcome of its own. With a key, or names, repeatable.

        A sandbox that an earlier call has made from this backup is left as it is. One whose outcome is an error may
        exist, with nothing in it: the same call completes it.

        Raises:
            BackupNotFoundError, BackupExpiredError, BackupRestoreError, InvalidBackupConfigError: nothing was made.
        """
        if idempotency_key is not None:
            validated(IdempotencyKey, {"key": idempotency_key}, InvalidBackupConfigError)
        names = options.sandboxes or _names(self.tenant, backup_id, options.count or 0, idempotency_key)
        wanted = {"backup_id": backup_id, "sandboxes": names, "dir": options.dir, "mode": options.mode}
        order = validated(ForkOrder, wanted, InvalidBackupConfigError)
        return self._call(lambda service: service.fork.remote(self.tenant, order))

    def adopt(self, backup_id: str, *, owner: str | None = None) -> Call[BackupInfo]:
        """Checks and signs an unsigned backup, such as one of Cloudflare's SDK; it becomes this tenant's or `owner`'s.

        Checks its archive, and signs its metadata. Repeatable. Unsigned backups belong to the default tenant, so only
        that tenant can give one away. Raises BackupNotFoundError, BackupExpiredError, BackupRestoreError.
        """
        return self._call(lambda service: service.adopt.remote(self.tenant, backup_id, owner))

    def flatten(self, backup_id: str) -> Call[BackupInfo]:
        """Makes a full backup of what an incremental one holds; returns the new one, or the same if it is full.

        The incremental one stays. A repeated call makes another full one.

        Raises BackupNotFoundError, BackupExpiredError, BackupCreateError.
        """
        return self._call(lambda service: service.flatten.remote(self.tenant, backup_id))

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


def _names(tenant: str, backup_id: str, count: int, key: str | None) -> list[str]:
    """Names for the sandboxes of a fork: the same ones whenever the same key is given for the same backup."""
    if key is None:
        stem = secrets.token_hex(10)
    else:
        stem = hashlib.sha256("\0".join((tenant, backup_id.lower(), key)).encode()).hexdigest()[:20]
    return [f"fork-{stem}-{number}" for number in range(1, count + 1)]
