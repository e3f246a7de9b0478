"""Routes of backups: creating, restoring, forking, listing, adopting, flattening and deleting them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from actors.errors import InvalidBackupConfigError
from actors.models import (
    BACKUP_ID_SCHEMA,
    BackupFilePage,
    BackupId,
    BackupInfo,
    BackupOptions,
    BackupPage,
    ChangesPage,
    DirectoryBackup,
    ForkOptions,
    ForkResult,
    Model,
    RestoreBackupResult,
    RestoreOptions,
    validated,
)
from gateway.answers import NO_CONTENT, answer, done
from gateway.body import describes, parsed
from gateway.routes.request import BackupPath, Box, Cursor, Limit, Service

router = APIRouter(prefix="/v1", tags=["backups"])


class _Named(Model):
    id: BackupId


async def _backup_id(
    id: Annotated[str, Path(description="The backup's UUID.", json_schema_extra=BACKUP_ID_SCHEMA)],
) -> str:
    return validated(_Named, {"id": id}, InvalidBackupConfigError).id


async def _other_id(
    other: Annotated[str, Path(description="The later backup's UUID.", json_schema_extra=BACKUP_ID_SCHEMA)],
) -> str:
    return validated(_Named, {"id": other}, InvalidBackupConfigError).id


async def _since_id(
    backup: Annotated[str, Path(description="The backup's UUID.", json_schema_extra=BACKUP_ID_SCHEMA)],
) -> str:
    return validated(_Named, {"id": backup}, InvalidBackupConfigError).id


Key = Annotated[
    str | None, Header(description="1 to 200 printable ASCII characters, one for each intended backup or fork.")
]
Backup = Annotated[str, Depends(_backup_id)]
OtherBackup = Annotated[str, Depends(_other_id)]
SinceBackup = Annotated[str, Depends(_since_id)]
Recursive = Annotated[bool, Query(description="Also list what is in the directories below.")]
LiveDirectory = Annotated[
    str | None, Query(description="The sandbox's directory; by default the one that was backed up.")
]


@router.post("/sandbox/{id}/backup", response_model=DirectoryBackup, openapi_extra=describes(BackupOptions))
async def create_backup(request: Request, box: Box, idempotency_key: Key = None) -> Response:
    """Archives a directory and uploads it. Goes on to its end even if the client goes away.

    With an `Idempotency-Key`, a repeated request gives the first one's backup instead of making a second.
    """
    options = await parsed(request, BackupOptions, InvalidBackupConfigError)
    return answer(await box.create_backup(options, idempotency_key=idempotency_key))


@router.post("/sandbox/{id}/restore", response_model=RestoreBackupResult, openapi_extra=describes(RestoreOptions))
async def restore_backup(request: Request, box: Box) -> Response:
    """Restores a backup into a directory. Goes on to its end even if the client goes away."""
    options = await parsed(request, RestoreOptions, InvalidBackupConfigError)
    return answer(await box.restore_backup(options))


@router.get("/sandbox/{id}/backups", response_model=BackupPage)
async def list_backups(box: Box, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """The sandbox's backups, newest first. Neither wakes nor creates it."""
    return answer(await box.backups(limit=limit, cursor=cursor))


@router.get("/backup/{id}", response_model=BackupInfo)
async def backup_info(service: Service, backup_id: Backup) -> Response:
    """One backup."""
    return answer(await service.backup(backup_id))


@router.get("/backup/{id}/files", response_model=BackupFilePage)
async def backup_files(
    service: Service,
    backup_id: Backup,
    path: BackupPath,
    recursive: Recursive = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """The files of a backup, in the order of their paths. Wakes no sandbox, and fetches no archive.

    `path` is absolute within the backup, whose own directory is "/". Of a path that is no directory, the answer has its
    own entry. Bytes of a name that are not UTF-8 come as \\udc80 to \\udcff.
    """
    return answer(await service.backup_files(backup_id, path, recursive=recursive, limit=limit, cursor=cursor))


@router.get("/backup/{id}/diff/{other}", response_model=ChangesPage)
async def backup_changes(
    service: Service, backup_id: Backup, other: OtherBackup, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """The changes from the first backup to the second: added, changed and removed files. Wakes no sandbox.

    Go on until a page has no `cursor`: a page may have fewer changes than `limit`, even none.
    """
    return answer(await service.backup_changes(backup_id, other, limit=limit, cursor=cursor))


@router.get("/sandbox/{id}/diff/{backup}", response_model=ChangesPage)
async def changes_since_backup(
    box: Box, backup: SinceBackup, dir: LiveDirectory = None, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """The changes in the sandbox since a backup, in the directory that was backed up or in `dir`.

    Wakes the sandbox; commands go on meanwhile.
    """
    return answer(await box.changes_since(backup, dir=dir, limit=limit, cursor=cursor))


@router.post("/backup/{id}/fork", response_model=ForkResult, openapi_extra=describes(ForkOptions))
async def fork_backup(request: Request, service: Service, backup_id: Backup, idempotency_key: Key = None) -> Response:
    """Makes up to 256 sandboxes from one backup, each with an outcome of its own. Goes on if the client goes away.

    Give either `count` or the names in `sandboxes`. With names, or with `count` and an `Idempotency-Key`, a repeated
    request makes no second set: it leaves what is there as it is, and makes what is missing.
    """
    options = await parsed(request, ForkOptions, InvalidBackupConfigError)
    return answer(await service.fork(backup_id, options, idempotency_key=idempotency_key))


@router.post("/backup/{id}/adopt", response_model=BackupInfo)
async def adopt_backup(service: Service, backup_id: Backup) -> Response:
    """Checks a backup that nobody has signed, such as one of Cloudflare's SDK, and signs it: it is one of ours then."""
    return answer(await service.adopt(backup_id))


@router.post("/backup/{id}/flatten", response_model=BackupInfo)
async def flatten_backup(service: Service, backup_id: Backup) -> Response:
    """Makes a full backup of what an incremental one holds, and describes it. The incremental one stays."""
    return answer(await service.flatten(backup_id))


@router.delete("/backup/{id}", status_code=NO_CONTENT, response_class=Response)
async def delete_backup(service: Service, backup_id: Backup) -> Response:
    """Deletes a backup: its metadata first, its archive after."""
    await service.delete_backup(backup_id)
    return done()
