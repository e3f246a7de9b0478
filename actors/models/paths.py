"""Paths inside a sandbox."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

from actors.errors import InvalidRequestError, PathForbiddenError

WRITABLE_ROOTS = ("/workspace", "/home", "/tmp", "/var/tmp", "/app")
MAX_PATH_BYTES = 4096


def _absolute_path(value: str) -> str:
    if not isinstance(value, str):  # a Python caller's
        raise ValueError("must be text")
    if "\0" in value:
        raise ValueError("must not contain NUL")
    if not value.startswith("/"):
        raise ValueError("must be an absolute path")
    if len(value.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
        raise ValueError(f"must be at most {MAX_PATH_BYTES} bytes")
    path = PurePosixPath(value)
    if ".." in path.parts:
        raise ValueError("must not contain '..'")
    return "/" + str(path).lstrip("/")


def is_writable(path: str) -> bool:
    """True if a normalized absolute path is at or under one of the sandbox's writable roots."""
    return any(path == root or path.startswith(root + "/") for root in WRITABLE_ROOTS)


def writable_path(value: str) -> str:
    """A path inside a sandbox, normalized.

    Raises:
        InvalidRequestError: it is not an absolute, bounded path without '..' and NUL.
        PathForbiddenError: it is not at or under a writable root.
    """
    try:
        path = _absolute_path(value)
    except ValueError as e:
        raise InvalidRequestError(f"The path {e}.", context={"path": str(value)[:200]}) from None
    if not is_writable(path):
        raise PathForbiddenError(
            "The path is outside the sandbox's writable roots.",
            hint=f"Use a path at or under {', '.join(WRITABLE_ROOTS)}.",
            context={"path": path},
        )
    return path


def _backup_dir(value: str) -> str:
    path = _absolute_path(value)
    if not is_writable(path):
        raise ValueError(f"must be at or under one of {', '.join(WRITABLE_ROOTS)}")
    try:
        path.encode()
    except UnicodeEncodeError:  # the bucket's documents could not name it
        raise ValueError("must have a name in UTF-8; the directory above it can be named instead") from None
    return path


_DIR_SCHEMA = {"pattern": f"^({'|'.join(WRITABLE_ROOTS)})(/.*)?$"}

BackupDir = Annotated[str, AfterValidator(_backup_dir), Field(json_schema_extra=_DIR_SCHEMA)]
SandboxPath = Annotated[str, AfterValidator(_absolute_path)]
