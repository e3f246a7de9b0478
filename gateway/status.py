"""The one table from an error's code to its HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from actors.errors import HoldfastError
from gateway.errors import MalformedBodyError, NotUnderstoodError

STATUS: Mapping[str, int] = MappingProxyType(
    {
        "INVALID_BACKUP_CONFIG": 400,
        "UNAUTHORIZED": 401,
        "PATH_FORBIDDEN": 403,
        "BACKUP_NOT_FOUND": 404,
        "COMMAND_NOT_FOUND": 404,
        "FILE_NOT_FOUND": 404,
        "NOT_FOUND": 404,
        "SANDBOX_NOT_FOUND": 404,
        "METHOD_NOT_ALLOWED": 405,
        "REQUEST_TIMEOUT": 408,
        "BACKUP_NOT_LISTED": 409,
        "DOCUMENT_DAMAGED": 409,
        "INPUT_TAKEN": 409,
        "NOT_A_REGULAR_FILE": 409,
        "OPERATION_CANCELLED": 409,
        "SANDBOX_EXISTS": 409,
        "EXEC_STOPPED": 409,
        "BACKUP_EXPIRED": 410,
        "REQUEST_TOO_LARGE": 413,
        "EXEC_OUTPUT_LIMIT": 422,
        "INVALID_REQUEST": 422,
        "TOO_MANY_REQUESTS": 429,
        "BACKUP_CREATE_FAILED": 500,
        "BACKUP_RESTORE_FAILED": 500,
        "EXEC_FAILED": 500,
        "INTERNAL": 500,
        "MOUNT_LOST": 503,
        "SANDBOX_UNAVAILABLE": 503,
        "SERVICE_UNAVAILABLE": 503,
        "STORAGE_UNAVAILABLE": 503,
        "EXEC_TIMEOUT": 504,
        "NO_SPACE": 507,
    }
)


def status_of(error: HoldfastError) -> int:
    """The HTTP status for an error. A request that cannot be read or understood gets 400; a bad value gets 422."""
    if isinstance(error, MalformedBodyError | NotUnderstoodError):
        return 400
    return STATUS.get(error.code, 500)
