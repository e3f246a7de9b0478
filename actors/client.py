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

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from actors.errors import InvalidBackupConfigError, InvalidRequestError
from actors.models import (
    DEFAULT_TENANT,
    DEFAULT_TTL_S,
    MAX_INPUT_BYTES,
    MAX_PAGE,
    MAX_TIMEOUT_MS,
    TRANSFER_BYTES,
    BackupInfo,
    BackupOptions,
    Compression,
    DirectoryBackup,
    ExecEvent,
    ExecRequest,
    ExecResult,
    Exit,
    FileChange,
    FileEntry,
    ForgetOptions,
    ForgetResult,
    Recovery,
    RestoreBackupResult,
    RestoreMode,
    RestoreOptions,
    Retention,
    RetentionChange,
    RetentionReport,
    RetentionRun,
    SandboxEvent,
    SandboxInfo,
    listed,
    validated,
)
from actors.pages import pages
from actors.rpc.calls import Call
from actors.rpc.cluster import connect
from actors.rpc.input_source import InputSource
from actors.rpc.sandbox_calls import InputWriter, SandboxCalls, Upload
from actors.rpc.service_calls import ServiceCalls

__all__ = ["InputWriter", "Sandbox", "SandboxCalls", "ServiceCalls", "Upload", "get_sandbox", "get_service"]


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
        full: bool = False,
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
            full: make a complete archive, even where only what was changed could be archived.
            compression: zstd at level 1 if not given.
            idempotency_key: a repeated call with the same key returns the first call's backup.
        """
        values = {
            "dir": dir,
            "name": name,
            "ttl": ttl,
            "excludes": listed("excludes", excludes, InvalidBackupConfigError),
            "gitignore": gitignore,
            "full": full,
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
        stdin: bytes | str | BinaryIO | None = None,
    ) -> ExecResult:
        """Runs a command to its end and returns its output. A non-zero exit is a result, not an error.

        The command reads `stdin` as its standard input: bytes, text (in UTF-8), or a file of bytes of any size, which
        is sent as the command reads it. A command need not read it. Without `stdin`, its input is /dev/null.
        """
        output: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        for event in self.exec_stream(argv, cwd=cwd, env=env, timeout_s=timeout_s, stdin=stdin):
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
        stdin: bytes | str | BinaryIO | None = None,
    ) -> Iterator[ExecEvent]:
        """Runs a command and yields its output as it comes. `stdin` is as for `exec`."""
        if isinstance(argv, str):
            raise InvalidRequestError("argv must be a list of words; for a shell use ['sh', '-c', ...].")
        values: dict[str, Any] = {"argv": list(argv), "cwd": cwd, "env": dict(env or {})}
        if timeout_s is not None:
            values["timeout_ms"] = _milliseconds(timeout_s)
        given = stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin
        file = io.BytesIO(given) if isinstance(given, bytes) else given
        if isinstance(given, bytes) and len(given) <= MAX_INPUT_BYTES:
            values["stdin_base64"] = base64.b64encode(given).decode("ascii")
        elif file is not None:
            values["stdin_stream"] = True
        return InputSource(file).feeding(self.calls, self.calls.exec(validated(ExecRequest, values)))

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

    def changes_since(self, backup: DirectoryBackup, *, dir: str | None = None) -> Iterator[FileChange]:
        """Yields the changes since a backup, of the directory that was backed up or of `dir`, in order of the paths.

        A file of the same size and time of change is taken for unchanged.
        """
        if not isinstance(backup, DirectoryBackup):
            raise InvalidBackupConfigError("The backup must be the handle that create_backup returned.")
        for page in pages(
            lambda cursor: self.calls.changes_since(backup.id, dir=dir, limit=MAX_PAGE, cursor=cursor).result()
        ):
            yield from page.changes

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

    def retention(self) -> Retention:
        """The sandbox's retention policy; an empty one if none was set. Does not wake it."""
        return self.calls.retention().result()

    def set_retention(
        self, *, keep_last: int | None = None, keep_daily: int | None = None, pinned: Sequence[str] = ()
    ) -> Retention:
        """Replaces the retention policy; without arguments, all backups are kept. Does not wake the sandbox.

        The policy is applied after each backup and by every `gc`, or at once with `apply_retention`.

        Args:
            keep_last: so many of the newest backups of each directory are kept.
            keep_daily: the newest backup of each day (UTC), for so many of the latest days that have one.
            pinned: ids of backups that are kept whatever the numbers are.
        """
        values = {"keep_last": keep_last, "keep_daily": keep_daily, "pinned": listed("pinned", pinned)}
        return self.calls.set_retention(validated(Retention, values)).result()

    def change_retention(
        self,
        *,
        keep_last: int | None = None,
        keep_daily: int | None = None,
        pin: Sequence[str] = (),
        unpin: Sequence[str] = (),
    ) -> Retention:
        """Changes what is given of the retention policy, and keeps the rest of it; returns the new policy."""
        values = {
            "keep_last": keep_last,
            "keep_daily": keep_daily,
            "pin": listed("pin", pin),
            "unpin": listed("unpin", unpin),
        }
        return self.calls.change_retention(validated(RetentionChange, values)).result()

    def apply_retention(self, *, dry_run: bool = False, policy: Retention | None = None) -> RetentionReport:
        """Deletes the backups that the policy does not keep. A dry run only says so, and takes a policy to try."""
        options = validated(RetentionRun, {"dry_run": dry_run, "policy": policy})
        return self.calls.apply_retention(options).result()

    def cancel(self) -> bool:
        """Cancels the running backup or restore; see `SandboxCalls.cancel`."""
        return self.calls.cancel().result()

    def backups(self) -> Iterator[BackupInfo]:
        """The sandbox's backups, newest first."""
        for page in pages(lambda cursor: self.calls.backups(cursor=cursor).result()):
            yield from page.backups

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
