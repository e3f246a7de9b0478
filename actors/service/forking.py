"""Makes many sandboxes from one backup: each by a restore, some at once, each with an outcome of its own.

A fork has no record of its own. Its sandboxes' states say what it has made, so the call can be repeated: a sandbox
into which the backup was restored before is left as it is, whatever was written there since. A sandbox in which nothing
has ever been is completed. Any other one is in use, and is refused.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Protocol

from actors.bucket import configured
from actors.config import SandboxConfig
from actors.errors import BackupRestoreError, HoldfastError, SandboxExistsError, SandboxNotFoundError
from actors.faults import failing_as
from actors.host.error_filter import guarded
from actors.models import Fork, ForkError, ForkOrder, ForkResult, RestoreBackupResult, RestoreOptions
from actors.rpc.sandbox_calls import SandboxCalls
from actors.sandbox.restorable import restorable
from actors.service.states import state_of
from storage.catalog import BackupCatalog
from storage.metadata import SandboxState

_AT_ONCE = 8
"""Number of sandboxes that are made at once, of all forks together. Each starts a process on some node."""
_TRIES = 3
_PAUSE_S = 1.0
"""Attempts for each sandbox, and the pause between them, while the service is too busy to begin."""
_UNTOUCHED = frozenset({"created", "woke"})
"""The events of a sandbox in which nothing has happened yet."""


class Targets(Protocol):
    """The backups and sandboxes of the cluster, as a fork sees them. Every method raises a HoldfastError."""

    def directory_of(self, tenant: str, backup_id: str) -> str:
        """Checks that new sandboxes can be made from a backup, as a restore does; returns the backup's directory."""

    def find_state(self, tenant: str, sandbox_id: str) -> SandboxState | None:
        """Returns a sandbox's state; None if there is no such sandbox."""

    def restored_in(self, tenant: str, sandbox_id: str) -> Collection[tuple[str, str]]:
        """Returns the directories of an awake sandbox that were restored, each with its backup. Wakes nothing."""

    def restore(self, tenant: str, sandbox_id: str, options: RestoreOptions) -> RestoreBackupResult:
        """Restores a backup into a sandbox; makes the sandbox if there is none."""


class Forking:
    """The forks of all tenants. Thread-safe."""

    def __init__(
        self, targets: Targets, *, at_once: int = _AT_ONCE, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._targets = targets
        self._sleep = sleep
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="fork")
        self._locks = _Locks()

    def fork(self, tenant: str, order: ForkOrder) -> ForkResult:
        """Makes the sandboxes of an order; returns when all have ended. Raises a HoldfastError: nothing was made."""
        own = self._targets.directory_of(tenant, order.backup_id)
        directory = order.dir or own
        given = {"id": order.backup_id, "dir": directory} | ({"mode": order.mode} if order.mode else {})
        options = RestoreOptions.model_validate(given)
        tasks = [
            self._pool.submit(copy_context().run, partial(self._outcome, tenant, name, options))
            for name in order.sandboxes
        ]
        forks = [task.result() for task in tasks]
        return ForkResult(
            success=all(fork.success for fork in forks), backup_id=order.backup_id, dir=directory, forks=forks
        )

    def _outcome(self, tenant: str, name: str, options: RestoreOptions) -> Fork:
        with self._locks.held((tenant, name)):
            for is_last in [False] * (_TRIES - 1) + [True]:
                try:
                    return guarded(lambda: self._made(tenant, name, options))
                except HoldfastError as e:
                    if is_last or not _was_not_begun(e):
                        return Fork(id=name, success=False, error=_told(e))
                self._sleep(_PAUSE_S)
        raise AssertionError("the last attempt returns")

    def _made(self, tenant: str, name: str, options: RestoreOptions) -> Fork:
        state = self._targets.find_state(tenant, name)
        if state is not None:
            wanted = (options.dir, options.id)
            if wanted in _restored(state) or wanted in self._targets.restored_in(tenant, name):
                return Fork(id=name, success=True, existed=True)
            if not _is_untouched(state):
                raise SandboxExistsError(
                    "A sandbox of this name exists, and was not made from this backup.",
                    hint="Choose another name; or restore the backup into that sandbox, which replaces the directory.",
                    context={"sandbox": name},
                )
        result = self._targets.restore(tenant, name, options)
        return Fork(id=name, success=True, mode=result.mode)


def _was_not_begun(error: HoldfastError) -> bool:
    return error.may_be_retried and error.context.get("outcome") == "not_executed"


def _told(error: HoldfastError) -> ForkError:
    return ForkError(
        code=error.code,
        error=error.message,
        context=error.context,
        hint=error.hint,
        retryable=error.may_be_retried,
    )


def _restored(state: SandboxState) -> set[tuple[str | None, str | None]]:
    """The directories into which a backup was restored, each with the backup. (A checkpoint may be its own backup.)"""
    rows = {(row.dir, row.backup_id) for row in state.restored}
    return rows | {(event.dir, event.backup_id) for event in state.events if event.kind == "restored"}


def _is_untouched(state: SandboxState) -> bool:
    """True if nothing has ever been in the sandbox, as far as its state says."""
    return not (
        state.restored
        or state.checkpoints
        or state.unsaved
        or state.pending
        or any(event.kind not in _UNTOUCHED for event in state.events)
    )


class _Locks:
    """A lock for each sandbox that is being forked, so that a repeated call waits for the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._users = Counter[tuple[str, str]]()

    @contextmanager
    def held(self, key: tuple[str, str]) -> Iterator[None]:
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
            self._users[key] += 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key], self._locks[key]


class ClusterTargets:
    """The bucket's backups, and the sandboxes of this cluster, called as any client calls them."""

    def __init__(self, config: SandboxConfig, catalog: BackupCatalog | None) -> None:
        self._config = config
        self._catalog = catalog

    def directory_of(self, tenant: str, backup_id: str) -> str:
        """See `Targets`."""
        catalog, unsigned = configured(self._catalog, self._config), self._config.restore_unsigned
        with failing_as(BackupRestoreError, "restored"):
            return restorable(catalog, tenant, backup_id, into=None, restores_unsigned=unsigned).dir

    def find_state(self, tenant: str, sandbox_id: str) -> SandboxState | None:
        """See `Targets`."""
        try:
            return state_of(self._catalog, tenant, sandbox_id)
        except SandboxNotFoundError:
            return None

    def restored_in(self, tenant: str, sandbox_id: str) -> Collection[tuple[str, str]]:
        """See `Targets`."""
        calls = SandboxCalls(sandbox_id, tenant=tenant)
        if not calls.awake().result():
            return ()
        return {(row.dir, row.backup_id) for row in calls.info().result().restored}

    def restore(self, tenant: str, sandbox_id: str, options: RestoreOptions) -> RestoreBackupResult:
        """See `Targets`."""
        return SandboxCalls(sandbox_id, tenant=tenant).restore_backup(options, near=False).result()
