"""Routes of backups: creating, restoring, listing, adopting and deleting them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from actors.errors import InvalidBackupConfigError
from actors.models import (
    BACKUP_ID_SCHEMA,
    BackupId,
    BackupInfo,
    BackupOptions,
    BackupPage,
    DirectoryBackup,
    Model,
    RestoreBackupResult,
    RestoreOptions,
    validated,
)
from gateway.answers import NO_CONTENT, answer, done
from gateway.body import describes, parsed
from gateway.routes.request import Box, Cursor, Limit, Service

router = APIRouter(prefix="/v1", tags=["backups"])


class _Named(Model):
    id: BackupId


async def _backup_id(
    id: Annotated[str, Path(description="The backup's UUID.", json_schema_extra=BACKUP_ID_SCHEMA)],
) -> str:
    return validated(_Named, {"id": id}, InvalidBackupConfigError).id


Key = Annotated[str | None, Header(description="1 to 200 printable ASCII characters, one for each intended backup.")]
Backup = Annotated[str, Depends(_backup_id)]


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


@router.post("/backup/{id}/adopt", response_model=BackupInfo)
async def adopt_backup(service: Service, backup_id: Backup) -> Response:
    """Checks a backup that nobody has signed, such as one of Cloudflare's SDK, and signs it: it is one of ours then."""
    return answer(await service.adopt(backup_id))


@router.delete("/backup/{id}", status_code=NO_CONTENT, response_class=Response)
async def delete_backup(service: Service, backup_id: Backup) -> Response:
    """Deletes a backup: its metadata first, its archive after."""
    await service.delete_backup(backup_id)
    return done()
