"""The service, run by its actor: all that concerns a tenant or the bucket as a whole. Knows nothing of Ray and HTTP."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from actors.bucket import configured, open_catalog
from actors.config import SandboxConfig
from actors.errors import InvalidBackupConfigError, InvalidRequestError
from actors.faults import damaged, reading
from actors.logs import log
from actors.metrics import UNMETERED, Meter
from actors.models import (
    BackupInfo,
    BackupPage,
    BackupStatus,
    Check,
    DirectoryBackup,
    EventList,
    GcReport,
    LabelChange,
    LifecycleOptions,
    LifecycleReport,
    NewSandbox,
    NotKept,
    PageOptions,
    SandboxInfo,
    SandboxPage,
    SandboxRef,
    TenantName,
    validated,
)
from actors.sandbox.restorable import no_such_backup
from actors.service.collection import BucketCollection
from actors.service.doctor import bucket_checks, checks
from actors.service.retention import SandboxRetention
from actors.service.states import reading_state, state_of
from actors.state.api_views import public_event, public_recovery, public_restored
from actors.state.document import StateRead
from actors.state.labels import relabelled
from actors.state.patience import answered_in_moments
from storage import lifecycle
from storage.catalog import BackupCatalog, UnusableBackup
from storage.config import TransferConfig
from storage.errors import (
    DocumentError,
    NewerDocumentError,
    StorageError,
    TamperedMetadataError,
    UnsignedMetadataError,
)
from storage.metadata import BackupRecord, SandboxState
from storage.room import lacks_room
from storage.s3 import S3ObjectStore
from storage.sandbox_documents import StoredState

_STATUS: dict[type[DocumentError], BackupStatus] = {
    UnsignedMetadataError: BackupStatus.UNSIGNED,
    TamperedMetadataError: BackupStatus.TAMPERED,
    NewerDocumentError: BackupStatus.NEWER,
    DocumentError: BackupStatus.UNREADABLE,  # all others
}
_LOG = Path("/proc/self/fd/2")
_AT_ONCE = 100
"""Backups read at once: the metadata of each can have a megabyte, what is told of it has a few hundred bytes."""
_BRIEF = TransferConfig(attempts=1, connect_timeout_s=1.0, idle_timeout_s=2.0)


class Service:
    """Everything about backups and sandboxes that needs no sandbox's actor."""

    def __init__(
        self,
        config: SandboxConfig,
        catalog: BackupCatalog | None,
        *,
        awake: Callable[[str, Collection[str]], Collection[str]],
        meter: Meter = UNMETERED,
    ) -> None:
        """`awake` returns those of a tenant's sandboxes that have an actor."""
        self._config = config
        self.retention = SandboxRetention(self._configured, self.delete_backup, meter=meter)
        self.collection = BucketCollection(self._configured, self.retention, meter)
        self._catalog = catalog
        self._awake = awake
        self.has_conditional_writes: bool | None = None
        """True if the bucket has conditional writes; None until `try_conditional_writes` has found it out."""

    def ready(self) -> tuple[str, ...]:
        """Checks that calls would succeed now. Returns a sentence for each full disk, on which some calls fail.

        Raises StorageUnavailableError and its like.
        """
        if self._catalog is not None:
            with reading("bucket"):
                self._catalog.sandboxes.page("default", limit=1)
        full = {
            "The disk of the sandboxes' files": lacks_room(self._config.node.data_dir, 0),
            "The disk of the bucket": self._catalog is not None and self._catalog.store.lacks_room(0),
            "The disk of Ray's files": is_log_disk_full(),
        }
        return tuple(
            f"{disk} is full: what needs room fails; deletions work." for disk, is_full in full.items() if is_full
        )

    def try_conditional_writes(self) -> None:
        """Finds out, once, whether the bucket has conditional writes. Blocks for as long as requests to it may take."""
        if self._catalog is None or self.has_conditional_writes is not None:
            return
        try:
            self.has_conditional_writes = self._catalog.store.supports_conditional_writes()
        except StorageError as e:
            log.warning("conditional_writes_not_tried", error=type(e).__name__)
        if self.has_conditional_writes is False:
            log.warning("no_conditional_writes", bucket=self._catalog.store.bucket)

    def find_state(self, tenant: str, sandbox_id: str) -> StateRead | None:
        """Reads a sandbox's state; None without a bucket, and if the state cannot be read in `MOMENTS_S`."""
        catalog = self._catalog
        if catalog is None:
            return None
        return answered_in_moments(lambda: StateRead(catalog.sandboxes.find_state(tenant, sandbox_id)))

    def record_new(self, tenant: str, sandbox_id: str) -> StateRead | None:
        """Writes the state of a new sandbox, so that its caller finds it in the list. Returns like `find_state`.

        If that fails, the sandbox's actor does it.
        """
        if self._catalog is None or self.has_conditional_writes is None:
            return None
        state = _new_state(tenant, sandbox_id)
        try:
            return StateRead(StoredState(state, self._brief.sandboxes.write_state(state, replacing=None)))
        except StorageError as e:
            log.warning("sandbox_not_recorded", sandbox=sandbox_id, error=type(e).__name__)
            return None

    @functools.cached_property
    def _brief(self) -> BackupCatalog:
        """The bucket, with one short attempt for each write: it must not arrive after one of the sandbox's actor."""
        config = {"transfer": _BRIEF, "conditional_writes": self.has_conditional_writes}
        return configured(open_catalog(self._config.model_copy(update=config)), self._config)

    def count_sandboxes(self) -> int | None:
        """Number of sandboxes in the bucket; None without a bucket. Raises StorageError."""
        return self._catalog.sandboxes.count_states() if self._catalog is not None else None

    def create_sandbox(self, tenant: str, labels: Mapping[str, str] | None = None) -> str:
        """Records a new sandbox and returns its random id. Labels need a bucket that is configured."""
        sandbox_id = f"sb-{secrets.token_hex(10)}"
        if labels:
            self.set_labels(tenant, sandbox_id, labels)
        elif self._catalog is not None:
            with reading("bucket"):
                self._catalog.sandboxes.write_state(_new_state(tenant, sandbox_id), replacing=None)
        return sandbox_id

    def set_labels(self, tenant: str, sandbox_id: str, labels: Mapping[str, str]) -> dict[str, str]:
        """Replaces the sandbox's labels with these; returns them. Raises like `relabelled`."""
        wanted = validated(NewSandbox, {"labels": dict(labels)}).labels
        with reading_state():
            return relabelled(self._configured(), tenant, sandbox_id, lambda _: wanted)

    def change_labels(
        self, tenant: str, sandbox_id: str, labels: Mapping[str, str], removed: Sequence[str]
    ) -> dict[str, str]:
        """Sets some labels and removes others; returns all labels of the sandbox. Raises like `relabelled`."""
        wanted = validated(LabelChange, {"labels": dict(labels), "removed": list(removed)})
        gone = set(wanted.removed)

        def change(old: Mapping[str, str]) -> dict[str, str]:
            kept = {key: value for key, value in old.items() if key not in gone}
            return validated(NewSandbox, {"labels": kept | wanted.labels}).labels

        with reading_state():
            return relabelled(self._configured(), tenant, sandbox_id, change)

    def events(self, tenant: str, sandbox_id: str, limit: int) -> EventList:
        """Returns a sandbox's latest events, newest first. Does not wake it. Raises SandboxNotFoundError."""
        size = validated(PageOptions, {"limit": limit}).limit
        return EventList(
            events=[public_event(event) for event in reversed(state_of(self._catalog, tenant, sandbox_id).events)][
                :size
            ]
        )

    def sandboxes(self, tenant: str, limit: int, cursor: str | None) -> SandboxPage:
        """Returns one page of a tenant's sandboxes."""
        wanted = validated(PageOptions, {"limit": limit, "cursor": cursor})
        with reading("cursor"):
            page = self._configured().sandboxes.page(tenant, limit=wanted.limit, cursor=wanted.cursor)
        awake = self._awake(tenant, page.names)
        rows = [SandboxRef(id=name, running=name in awake) for name in page.names]
        return SandboxPage(sandboxes=rows, cursor=page.cursor)

    def exists(self, tenant: str, sandbox_id: str) -> bool:
        """Tells whether the bucket has a state of a sandbox, damaged or not. False without a bucket.

        Raises StorageUnavailableError.
        """
        if self._catalog is None:
            return False
        with reading("sandbox"):
            try:
                return self._catalog.sandboxes.find_state(tenant, sandbox_id) is not None
            except DocumentError:
                return True

    def describe(self, tenant: str, sandbox_id: str) -> SandboxInfo:
        """Describes a sandbox that is not awake, from its state. Raises SandboxNotFoundError."""
        state = state_of(self._catalog, tenant, sandbox_id)
        return SandboxInfo(
            id=sandbox_id,
            running=False,
            created_at=state.created_at,
            last_used_at=state.last_used_at,
            epoch=state.epoch,
            labels=state.labels,
            recovery=public_recovery(state.recovery),
            restored=[public_restored(row) for row in state.restored],
        )

    def backups(self, tenant: str, sandbox_id: str, limit: int, cursor: str | None) -> BackupPage:
        """Returns one page of a sandbox's backups, newest first."""
        wanted = validated(PageOptions, {"limit": limit, "cursor": cursor})
        with reading("cursor"):
            catalog, found, after = self._configured(), list[BackupInfo](), wanted.cursor
            while True:
                size = min(_AT_ONCE, wanted.limit - len(found))
                page = catalog.page(tenant, sandbox_id, limit=size, cursor=after)
                found += map(self._listed, page.rows)
                after = page.cursor
                if after is None or len(found) == wanted.limit or len(page.rows) < size:
                    return BackupPage(backups=found, cursor=after)

    def backup(self, tenant: str, backup_id: str) -> BackupInfo:
        """Returns one backup. Raises BackupNotFoundError, DocumentDamagedError."""
        known = _valid(backup_id)
        with reading("such backup"):
            return self._public(self._configured().get(tenant, known))

    def delete_backup(self, tenant: str, backup_id: str) -> None:
        """Deletes a backup.

        Raises:
            BackupNotFoundError: there is none.
            InvalidRequestError: a sandbox is asleep in it, and would wake without its files.
            DocumentDamagedError: its tenant, or whether a sandbox is asleep in it, cannot be determined.
        """
        known, catalog = _valid(backup_id), self._configured()
        with reading("such backup"), _deletable(known):
            record = _find_usable(catalog, tenant, known)
            if _is_slept_in(catalog, tenant, known, record):
                raise InvalidRequestError(
                    "A sandbox sleeps in this backup.",
                    hint="Delete the sandbox; or wake it, and back it up.",
                    context={"backup": known},
                )
            if not catalog.delete(tenant, known, record=record):
                raise no_such_backup(known)

    def adopt(
        self, tenant: str, backup_id: str, owner: str | None, adopt: Callable[[str, str, str], None]
    ) -> BackupInfo:
        """Makes an unsigned backup one of `owner`'s or, without `owner`, of the calling tenant's.

        Args:
            adopt: adopts it on a node, see `actors.service.adoption`. Raises like that.
        """
        known = _valid(backup_id)
        owner = validated(TenantName, {"tenant": owner or tenant}).tenant
        self._configured()
        adopt(tenant, known, owner)
        return self.backup(owner, known)

    def flatten(self, tenant: str, backup_id: str, flatten: Callable[[str, str], str]) -> BackupInfo:
        """Makes a full backup of an incremental one, and returns it; a full one is returned as it is.

        Args:
            flatten: makes it on a node, see `actors.service.flattening`. Raises like that.
        """
        known = _valid(backup_id)
        self._configured()
        return self.backup(tenant, flatten(tenant, known))

    def delete_damaged_backup(self, backup_id: str) -> None:
        """Deletes a backup of any tenant whose metadata is damaged or was tampered with. For operators of the service.

        Raises:
            BackupNotFoundError: there is none.
            InvalidRequestError: its metadata is in order, so its tenant deletes it.
            DocumentDamagedError: a later release has written it.
        """
        known, catalog = _valid(backup_id), self._configured()
        with reading("such backup"):
            if catalog.delete_unusable(known):
                log.warning("damaged_backup_deleted", backup=known)
                return
            catalog.read(known)
        raise InvalidRequestError(
            "The backup's metadata is not damaged.",
            hint=f"Run `holdfast delete --backup {known}` for its tenant.",
            context={"backup": known},
        )

    def collect(self, dry_run: bool) -> GcReport:
        """Deletes expired backups, objects that nobody owns, and the backups that no policy keeps."""
        return self.collection.collect(dry_run=dry_run)

    def lifecycle(self, expire_days: int | None) -> LifecycleReport:
        """Shows the bucket's lifecycle rules, or installs them."""
        validated(LifecycleOptions, {"expire_days": expire_days})
        store = self._configured().store
        assert isinstance(store, S3ObjectStore)
        with reading("bucket"):
            if expire_days is None:
                status = lifecycle.inspect(store)
            elif self._config.on_sleep == "backup":
                raise InvalidRequestError(
                    "Sandboxes sleep in their backups here, which such a rule would delete.", hint="Use `holdfast gc`."
                )
            else:
                status = lifecycle.install(store, expire_after_days=expire_days)
        return LifecycleReport(
            installed=status.is_installed,
            expire_days=status.expire_after_days,
            applied=expire_days is not None,
            over_layers=list(status.over_layers),
        )

    def doctor(self) -> list[Check]:
        """Checks what this node offers."""
        node = self._config.node
        found = checks(node.data_dir, uid=node.sandbox_uid, network=node.network, driver=node.driver)
        return found + bucket_checks(self._config.bucket)

    def _configured(self) -> BackupCatalog:
        return configured(self._catalog, self._config)

    def _listed(self, row: BackupRecord | UnusableBackup) -> BackupInfo:
        if isinstance(row, BackupRecord):
            return self._public(row)
        status = next((status for kind, status in _STATUS.items() if isinstance(row.error, kind)))
        entry = row.entry
        return BackupInfo(id=entry.backup_id, status=status, created_at=entry.created_at, sandbox=entry.sandbox)

    def _public(self, record: BackupRecord) -> BackupInfo:
        kept = record.not_kept
        return BackupInfo(
            id=record.id,
            status=BackupStatus.OK if record.is_signed else BackupStatus.UNSIGNED,
            dir=record.dir,
            name=record.name,
            size_bytes=record.size_bytes,
            total_bytes=record.total_bytes,
            depth=record.depth,
            parent=record.parent,
            ttl_s=record.ttl,
            created_at=record.created_at,
            expires_at=record.expires_at,
            expired=record.is_expired(datetime.now(UTC)),
            sandbox=record.sandbox,
            files=record.files,
            source_bytes=record.source_bytes,
            compression=record.compression,
            sha256=record.sha256,
            not_kept=NotKept.model_validate({name: getattr(kept, name) or 0 for name in NotKept.model_fields})
            if kept
            else None,
        )


def is_log_disk_full() -> bool:
    """Tells whether the disk with this process's log is full. All of Ray's files on this node are on it."""
    return _LOG.is_file() and lacks_room(_LOG, 0)


@contextmanager
def _deletable(backup_id: str) -> Iterator[None]:
    """Adds a hint to the error of a backup that its tenant cannot delete."""
    try:
        yield
    except NewerDocumentError:
        raise
    except DocumentError as e:
        raise damaged(e, hint=f"Who runs the service can: `holdfast delete --backup {backup_id} --damaged`.") from None


def _find_usable(catalog: BackupCatalog, tenant: str, backup_id: str) -> BackupRecord | None:
    """The metadata of a backup; None if it cannot be used. Raises StorageError, NewerDocumentError."""
    try:
        return catalog.get(tenant, backup_id)
    except NewerDocumentError:
        raise
    except DocumentError:
        return None


def _is_slept_in(catalog: BackupCatalog, tenant: str, backup_id: str, record: BackupRecord | None) -> bool:
    """Tells whether a sandbox is asleep in a backup. `record` is its metadata, if usable. Raises StorageError."""
    of_sleep: bool | None
    if record is not None:
        sandboxes, of_sleep = {record.sandbox} - {None}, bool(record.of_sleep)
    else:
        entries = catalog.entries_of(backup_id)
        sandboxes, of_sleep = {entry.sandbox for entry in entries if entry.tenant == tenant}, None
    return any(_sleeps_in(catalog, tenant, name, backup_id, of_sleep=of_sleep) for name in sandboxes if name)


def _sleeps_in(catalog: BackupCatalog, tenant: str, sandbox: str, backup_id: str, *, of_sleep: bool | None) -> bool:
    """Tells whether this sandbox is asleep in a backup. `of_sleep`: the backup was made for a sleep; None: unknown."""
    try:
        found = catalog.sandboxes.find_state(tenant, sandbox)
    except DocumentError:
        if of_sleep is False:  # so no sandbox is asleep in it, whatever the state said
            return False
        raise
    if found is None or backup_id not in found.state.sleep_backups:
        return False
    needed = {checkpoint.backup_id for checkpoint in found.state.checkpoints}
    return backup_id in needed or backup_id in found.state.pending  # a sleep is under way


def _new_state(tenant: str, sandbox_id: str) -> SandboxState:
    return SandboxState(id=sandbox_id, tenant=tenant, created_at=datetime.now(UTC))


def _valid(backup_id: str) -> str:
    """Validates an id as every other request does; returns it. Raises InvalidBackupConfigError."""
    return validated(DirectoryBackup, {"id": backup_id, "dir": "/workspace"}, InvalidBackupConfigError).id
