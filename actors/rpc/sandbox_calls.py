"""The calls to one sandbox, not sent yet: `await` them, or wait for their result in a thread."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.errors import CommandNotFoundError, ExecStoppedError, InvalidBackupConfigError
from actors.models import (
    DEFAULT_TENANT,
    BackupOptions,
    BackupPage,
    ChangesPage,
    DirectoryBackup,
    EventList,
    ExecEvent,
    ExecRequest,
    FileEntry,
    FileMode,
    ForgetOptions,
    ForgetResult,
    IdempotencyKey,
    LabelChange,
    LiveChangesOptions,
    Model,
    NewSandbox,
    Operation,
    PageOptions,
    RestoreBackupResult,
    RestoreOptions,
    Retention,
    RetentionChange,
    RetentionReport,
    RetentionRun,
    SandboxId,
    SandboxInfo,
    Started,
    exclude_patterns,
    listed,
    validated,
    writable_path,
)
from actors.rpc.actor_ref import ActorRef
from actors.rpc.calls import Call, Steps, Stream
from actors.rpc.names import EXEC, FILES, MAILBOX, READS, sandbox_actor_name
from actors.rpc.service_calls import ServiceCalls


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


class InputWriter:
    """The writer of a running command's input: call `send` any number of times, then `end`.

    Call `cut` if the rest will not come. The command must not take a part of its input for the whole, so it is stopped.
    """

    def __init__(self, actor: ActorRef, command_id: str) -> None:
        self._actor = ActorRef(actor.name, create=_without_command)  # the command ends with its actor
        self._id = command_id
        self._writer = uuid.uuid4().hex

    def send(self, data: bytes) -> Call[bool]:
        """Sends the next bytes, at most `TRANSFER_BYTES` at a time. Waits until the command has taken all of them.

        False if the command has ended, or has closed its input: the rest need not be sent. No bytes only ask for that.
        """
        return Call(lambda: self.sending(data))

    def sending(self, data: bytes) -> Steps[bool]:
        """The steps of `send`."""
        is_taken: bool = yield from self._actor.call(
            lambda actor: actor.send_input.remote(self._id, self._writer, data)
        )
        return is_taken

    def end(self) -> Call[None]:
        """Lets the command read the end of its input."""
        return Call(lambda: self._actor.call(lambda actor: actor.end_input.remote(self._id, self._writer)))

    def cut(self) -> Call[None]:
        """Stops the command, unless all was sent. Does not fail if it has ended."""
        return Call(
            lambda: self._actor.call_if_alive(lambda actor: actor.cut_input.remote(self._id, self._writer), None)
        )


def _without_command(lane: str | None, cached_backup_id: str | None) -> Steps[Any]:
    raise CommandNotFoundError("The command has ended, with the sandbox's actor.")


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

    def restore_backup(self, options: RestoreOptions, *, near: bool = True) -> Call[RestoreBackupResult]:
        """Restores a backup of the same tenant into a directory of this sandbox.

        A sandbox that has to be made is placed on a node that has the archive already; on the emptiest one if `near` is
        False.

        Raises:
            InvalidBackupConfigError, BackupNotFoundError, BackupExpiredError: permanent; nothing was changed.
            BackupRestoreError, NoSpaceError, OperationCancelledError: the directory is as it was.
            SandboxUnavailableError: the directory shows the old content or the new, never a mix.
        """
        having = options.id if near else None
        return self._call(MAILBOX, lambda actor: actor.restore_backup.remote(options), cached_backup_id=having)

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

    def exec(self, request: ExecRequest) -> Stream[Started | ExecEvent]:
        """Runs a command; yields `Output`s as they come and `Exit` last. Closing the stream stops the command.

        With `stdin_stream`, yields `Started` first: its `command_id` is for `command_input`.

        Raises:
            InvalidRequestError: argv and env are longer than the node accepts.
            FileNotFoundInSandboxError, PathForbiddenError: the working directory cannot be entered.
            SandboxUnavailableError: the node could not start the command, or ended its box; the context has the reason.
            ExecError: the command was ended from outside; the subclass says how.
        """
        return self._stream(EXEC, lambda actor, name: actor.exec.remote(name, request))

    def command_input(self, command_id: str) -> Call[InputWriter]:
        """Begins to write the input of a command that runs with `stdin_stream`. Only one caller can.

        Raises:
            CommandNotFoundError: no command of this id takes input.
            InputTakenError: another caller writes it, or has written it.
        """

        def steps() -> Steps[InputWriter]:
            writer = InputWriter(self.actor, command_id)
            yield from writer.sending(b"")
            return writer

        return Call(steps)

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

    def changes_since(
        self, backup_id: str, *, dir: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Call[ChangesPage]:
        """One page of what has changed in a directory of this sandbox since a backup of the same tenant.

        Without `dir`, in the directory that was backed up. Commands go on meanwhile.

        Raises:
            BackupNotFoundError, BackupNotListedError, DocumentDamagedError: as `ServiceCalls.backup_files`.
            FileNotFoundInSandboxError, NotARegularFileError: the sandbox has no such directory.
        """
        values = {"backup_id": backup_id, "dir": dir, "limit": limit, "cursor": cursor}
        wanted = validated(LiveChangesOptions, values, InvalidBackupConfigError)
        return self._call(FILES, lambda actor: actor.changes_since.remote(wanted))

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

    def retention(self) -> Call[Retention]:
        """The retention policy of the sandbox; an empty one if none was set. Does not wake it."""
        return Call(lambda: self.service.actor.call(lambda service: service.retention.remote(self.tenant, self.id)))

    def set_retention(self, policy: Retention) -> Call[Retention]:
        """Replaces the retention policy; returns it. Does not wake the sandbox, but creates it. Deletes nothing yet.

        Raises:
            BackupNotFoundError: a backup that is newly pinned is none of this sandbox; nothing was changed.
            InvalidRequestError: it was made for a sleep; nothing was changed.
        """
        return Call(
            lambda: self.service.actor.call(lambda service: service.set_retention.remote(self.tenant, self.id, policy))
        )

    def change_retention(self, change: RetentionChange) -> Call[Retention]:
        """Changes the retention policy; returns the new one. Raises as `set_retention`."""
        return Call(
            lambda: self.service.actor.call(
                lambda service: service.change_retention.remote(self.tenant, self.id, change)
            )
        )

    def apply_retention(self, options: RetentionRun) -> Call[RetentionReport]:
        """Deletes the backups that the policy does not keep, or says which these are. Repeatable. Does not wake it."""
        return Call(
            lambda: self.service.actor.call(
                lambda service: service.apply_retention.remote(self.tenant, self.id, options)
            )
        )

    def backups(self, *, limit: int = 100, cursor: str | None = None) -> Call[BackupPage]:
        """One page of the sandbox's backups, newest first. Neither wakes nor creates it."""
        page = validated(PageOptions, {"limit": limit, "cursor": cursor})
        return Call(
            lambda: self.service.actor.call(
                lambda service: service.backups.remote(self.tenant, self.id, page.limit, page.cursor)
            )
        )
