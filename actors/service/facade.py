"""The service: all that concerns a tenant or the bucket as a whole. Knows nothing of Ray and HTTP."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from actors.bucket import configured, open_catalog
from actors.config import SandboxConfig
from actors.errors import BackupNotFoundError, InvalidBackupConfigError, InvalidRequestError, SandboxNotFoundError
from actors.faults import damaged, reading
from actors.logs import log
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
from actors.service.doctor import checks
from actors.state.api_views import public_event, public_recovery, public_restored
from actors.state.document import StateRead
from actors.state.labels import relabelled
from actors.state.location import DAMAGED_HINT
from actors.state.patience import answered_in_moments
from storage import lifecycle
from storage.catalog import BackupCatalog, StoredState, UnusableBackup
from storage.collect import collect
from storage.config import TransferConfig
from storage.errors import (
    CorruptMetadataError,
    DocumentError,
    NewerDocumentError,
    StorageError,
    TamperedMetadataError,
    UnsignedMetadataError,
)
from storage.metadata import BackupRecord, SandboxState
from storage.room import lacks_room
from storage.s3 import S3ObjectStore

_STATUS: dict[type[DocumentError], BackupStatus] = {
    UnsignedMetadataError: BackupStatus.UNSIGNED,
    TamperedMetadataError: BackupStatus.TAMPERED,
    NewerDocumentError: BackupStatus.NEWER,
    DocumentError: BackupStatus.UNREADABLE,  # all others
}
_LOG = Path("/proc/self/fd/2")
_BRIEF = TransferConfig(attempts=1, connect_timeout_s=1.0, idle_timeout_s=2.0)
GRACE_S = 86_400.0
"""How old an archive without metadata has to be before it is taken for abandoned: longer than the longest upload."""


class Service:
    """Everything about backups and sandboxes that needs no sandbox's actor."""

    def __init__(
        self,
        config: SandboxConfig,
        catalog: BackupCatalog | None,
        *,
        awake: Callable[[str, Collection[str]], Collection[str]],
    ) -> None:
        """`awake` says for which of a tenant's sandboxes an actor lives."""
        self._config = config
        self._catalog = catalog
        self._awake = awake
        self.has_conditional_writes: bool | None = None
        """None until `try_conditional_writes` has found it out."""

    def ready(self) -> tuple[str, ...]:
        """Returns if calls would succeed now, with a sentence for each full disk, on which some would not.

        Raises StorageUnavailableError and its like.
        """
        if self._catalog is not None:
            with reading("bucket"):
                self._catalog.sandboxes("default", limit=1)
        full = {
            "The disk of the sandboxes' files": lacks_room(self._config.node.data_dir, 0),
            "The disk of the bucket": self._catalog is not None and self._catalog.store.lacks_room(0),
            "The disk of Ray's files": is_log_disk_full(),
        }
        return tuple(
            f"{disk} is full: what needs room fails; deletions work." for disk, is_full in full.items() if is_full
        )

    def try_conditional_writes(self) -> None:
        """Finds out, once, whether the bucket has conditional writes. May take as long as a bucket that is away."""
        if self._catalog is None or self.has_conditional_writes is not None:
            return
        try:
            self.has_conditional_writes = self._catalog.store.supports_conditional_writes()
        except StorageError as e:
            log.warning("conditional_writes_not_tried", error=type(e).__name__)
        if self.has_conditional_writes is False:
            log.warning("no_conditional_writes", bucket=self._catalog.store.bucket)

    def find_state(self, tenant: str, sandbox_id: str) -> StateRead | None:
        """What the bucket has of a sandbox; None if that cannot be known in moments."""
        catalog = self._catalog
        if catalog is None:
            return None
        return answered_in_moments(lambda: StateRead(catalog.find_state(tenant, sandbox_id)))

    def record_new(self, tenant: str, sandbox_id: str) -> StateRead | None:
        """Puts a sandbox that is new on record, so that whoever has used it finds it in the list; returns as above.

        Where that fails, its actor does it.
        """
        if self._catalog is None or self.has_conditional_writes is None:
            return None
        state = _new_state(tenant, sandbox_id)
        try:
            return StateRead(StoredState(state, self._brief.write_state(state, replacing=None)))
        except StorageError as e:
            log.warning("sandbox_not_recorded", sandbox=sandbox_id, error=type(e).__name__)
            return None

    @functools.cached_property
    def _brief(self) -> BackupCatalog:
        """The bucket, for a write that is tried once, and not for long: it must not arrive after its actor's own."""
        config = {"transfer": _BRIEF, "conditional_writes": self.has_conditional_writes}
        return configured(open_catalog(self._config.model_copy(update=config)), self._config)

    def count_sandboxes(self) -> int | None:
        """How many sandboxes the bucket knows; None without a bucket. Raises StorageError."""
        return self._catalog.count_states() if self._catalog is not None else None

    def create_sandbox(self, tenant: str, labels: Mapping[str, str] | None = None) -> str:
        """Records a fresh sandbox and returns its random id. Labels need a bucket that is configured."""
        sandbox_id = f"sb-{secrets.token_hex(10)}"
        if labels:
            self.set_labels(tenant, sandbox_id, labels)
        elif self._catalog is not None:
            with reading("bucket"):
                self._catalog.write_state(_new_state(tenant, sandbox_id), replacing=None)
        return sandbox_id

    def set_labels(self, tenant: str, sandbox_id: str, labels: Mapping[str, str]) -> dict[str, str]:
        """Gives the sandbox these labels instead of those it has; returns them. Raises as `relabelled`."""
        wanted = validated(NewSandbox, {"labels": dict(labels)}).labels
        with _reading_state():
            return relabelled(self._configured(), tenant, sandbox_id, lambda _: wanted)

    def change_labels(
        self, tenant: str, sandbox_id: str, labels: Mapping[str, str], removed: Sequence[str]
    ) -> dict[str, str]:
        """Sets some labels and removes others; returns all that the sandbox has then. Raises as `relabelled`."""
        wanted = validated(LabelChange, {"labels": dict(labels), "removed": list(removed)})
        gone = set(wanted.removed)

        def change(old: Mapping[str, str]) -> dict[str, str]:
            kept = {key: value for key, value in old.items() if key not in gone}
            return validated(NewSandbox, {"labels": kept | wanted.labels}).labels

        with _reading_state():
            return relabelled(self._configured(), tenant, sandbox_id, change)

    def events(self, tenant: str, sandbox_id: str, limit: int) -> EventList:
        """What happened to a sandbox lately, newest first. Does not wake it. Raises SandboxNotFoundError."""
        size = validated(PageOptions, {"limit": limit}).limit
        return EventList(
            events=[public_event(event) for event in reversed(self._state(tenant, sandbox_id).events)][:size]
        )

    def sandboxes(self, tenant: str, limit: int, cursor: str | None) -> SandboxPage:
        """One page of a tenant's sandboxes."""
        wanted = validated(PageOptions, {"limit": limit, "cursor": cursor})
        with reading("cursor"):
            page = self._configured().sandboxes(tenant, limit=wanted.limit, cursor=wanted.cursor)
        awake = self._awake(tenant, page.names)
        rows = [SandboxRef(id=name, running=name in awake) for name in page.names]
        return SandboxPage(sandboxes=rows, cursor=page.cursor)

    def exists(self, tenant: str, sandbox_id: str) -> bool:
        """Whether there is a bucket that knows a sandbox, though its state may be damaged.

        Raises StorageUnavailableError.
        """
        if self._catalog is None:
            return False
        with reading("sandbox"):
            try:
                return self._catalog.find_state(tenant, sandbox_id) is not None
            except DocumentError:
                return True

    def describe(self, tenant: str, sandbox_id: str) -> SandboxInfo:
        """What the bucket knows of a sandbox that is not awake. Raises SandboxNotFoundError."""
        state = self._state(tenant, sandbox_id)
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

    def _state(self, tenant: str, sandbox_id: str) -> SandboxState:
        """What the bucket has of a sandbox. Raises SandboxNotFoundError."""
        found = None
        if self._catalog is not None:
            with _reading_state():
                found = self._catalog.find_state(tenant, sandbox_id)
        if found is None:
            raise SandboxNotFoundError("There is no such sandbox.", context={"sandbox": sandbox_id})
        return found.state

    def backups(self, tenant: str, sandbox_id: str, limit: int, cursor: str | None) -> BackupPage:
        """One page of a sandbox's backups, newest first."""
        wanted = validated(PageOptions, {"limit": limit, "cursor": cursor})
        with reading("cursor"):
            page = self._configured().page(tenant, sandbox_id, limit=wanted.limit, cursor=wanted.cursor)
        return BackupPage(backups=[self._listed(row) for row in page.rows], cursor=page.cursor)

    def backup(self, tenant: str, backup_id: str) -> BackupInfo:
        """One backup. Raises BackupNotFoundError, DocumentDamagedError."""
        known = _valid(backup_id)
        with reading("such backup"):
            return self._public(self._configured().get(tenant, known))

    def delete_backup(self, tenant: str, backup_id: str) -> None:
        """Deletes a backup.

        Raises:
            BackupNotFoundError: there is none.
            InvalidRequestError: a sandbox sleeps in it, and would wake without its files.
            DocumentDamagedError: it cannot be told whose it is, or whether a sandbox sleeps in it.
        """
        known, catalog = _valid(backup_id), self._configured()
        with reading("such backup"), _deletable(known):
            if _is_slept_in(catalog, tenant, known):
                raise InvalidRequestError(
                    "A sandbox sleeps in this backup.",
                    hint="Delete the sandbox; or wake it, and back it up.",
                    context={"backup": known},
                )
            if not catalog.delete(tenant, known):
                raise BackupNotFoundError("There is no such backup.", context={"backup": known})

    def adopt(
        self, tenant: str, backup_id: str, owner: str | None, adopt: Callable[[str, str, str], None]
    ) -> BackupInfo:
        """Makes a backup that nobody has signed one of `owner`'s, or of the tenant's who asks.

        Args:
            adopt: has it done on a node: see `actors.service.adoption`. Raises as that does.
        """
        known = _valid(backup_id)
        owner = validated(TenantName, {"tenant": owner or tenant}).tenant
        self._configured()
        adopt(tenant, known, owner)
        return self.backup(owner, known)

    def delete_damaged_backup(self, backup_id: str) -> None:
        """Deletes a backup whose metadata is damaged or was tampered with, whoever it was: for who runs the service.

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
        """Deletes what has expired and what nobody owns."""
        catalog = self._configured()
        with reading("bucket"):
            found = collect(catalog, now=datetime.now(UTC), grace_s=GRACE_S, dry_run=dry_run)
        return GcReport(
            dry_run=dry_run,
            expired_backups=list(found.expired_backups),
            orphaned_archives=list(found.orphaned_archives),
            stale_uploads=len(found.stale_uploads),
            stale_index_entries=len(found.stale_index_entries),
            rebuilt_index_entries=len(found.rebuilt_index_entries),
            tampered=list(found.tampered),
            unsigned=list(found.unsigned),
            unreadable=list(found.unreadable),
            without_archive=list(found.without_archive),
            freed_bytes=found.freed_bytes,
        )

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
        )

    def doctor(self) -> list[Check]:
        """What this node offers."""
        node = self._config.node
        return checks(node.data_dir, uid=node.sandbox_uid, network=node.network, driver=node.driver)

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
    """Whether the disk is full that has this process's log, and with it all of Ray's files on this node."""
    return _LOG.is_file() and lacks_room(_LOG, 0)


@contextmanager
def _reading_state() -> Iterator[None]:
    """As `reading`; of a damaged state it says how the sandbox gets a sound one."""
    with reading("sandbox"):
        try:
            yield
        except CorruptMetadataError as e:
            raise damaged(e, hint=f"Run a command in the sandbox: that writes the state anew. {DAMAGED_HINT}") from None


@contextmanager
def _deletable(backup_id: str) -> Iterator[None]:
    """Says what remains to be done about a backup that its tenant cannot delete."""
    try:
        yield
    except NewerDocumentError:
        raise
    except DocumentError as e:
        raise damaged(e, hint=f"Who runs the service can: `holdfast delete --backup {backup_id} --damaged`.") from None


def _is_slept_in(catalog: BackupCatalog, tenant: str, backup_id: str) -> bool:
    """Whether a backup is where a sandbox is while it sleeps. Raises StorageError."""
    of_sleep: bool | None
    try:
        record = catalog.get(tenant, backup_id)
        sandboxes, of_sleep = {record.sandbox} - {None}, bool(record.of_sleep)
    except NewerDocumentError:
        raise
    except DocumentError:
        entries = catalog.entries_of(backup_id)
        sandboxes, of_sleep = {entry.sandbox for entry in entries if entry.tenant == tenant}, None
    return any(_sleeps_in(catalog, tenant, name, backup_id, of_sleep=of_sleep) for name in sandboxes if name)


def _sleeps_in(catalog: BackupCatalog, tenant: str, sandbox: str, backup_id: str, *, of_sleep: bool | None) -> bool:
    """Whether a sandbox sleeps in a backup. `of_sleep` is what the backup itself says, None where it cannot be told."""
    try:
        found = catalog.find_state(tenant, sandbox)
    except DocumentError:
        if of_sleep is False:  # and so nobody sleeps in it, whatever the state said
            return False
        raise
    if found is None or backup_id not in found.state.sleep_backups:
        return False
    needed = {checkpoint.backup_id for checkpoint in found.state.checkpoints}
    return backup_id in needed or backup_id in found.state.pending  # about to be slept in


def _new_state(tenant: str, sandbox_id: str) -> SandboxState:
    return SandboxState(id=sandbox_id, tenant=tenant, created_at=datetime.now(UTC))


def _valid(backup_id: str) -> str:
    """The id, checked in the way of every other door."""
    return validated(DirectoryBackup, {"id": backup_id, "dir": "/workspace"}, InvalidBackupConfigError).id
