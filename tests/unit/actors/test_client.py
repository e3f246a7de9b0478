"""Values that the Python client refuses before it calls an actor: those of the other doors, and Python's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.client import Sandbox, SandboxCalls, ServiceCalls
from actors.errors import InvalidRequestError, PathForbiddenError
from actors.models import MAX_CURSOR_LENGTH, DirectoryBackup

LIMITS: list[Any] = [0, -1, 1001, 10**309, 1.5, "1", True, None, float("nan"), float("inf")]
CURSORS: list[Any] = [1, b"x", ["x"], "x" * (MAX_CURSOR_LENGTH + 1)]
PATHS: list[Any] = [
    "",
    "relative",
    "/workspace/..",
    "/workspace/\0",
    "/" + "x" * 5000,
    Path("/workspace/x"),
    b"/tmp",
    None,
    1,
]
MODES: list[Any] = [-1, 0o10000, 10**30, 1.0, "644", True]
TIMES: list[Any] = [0, -1, -0.0, 10**400, 1e300, float("nan"), float("inf"), float("-inf"), "5", True, [1]]
TENANTS: list[Any] = ["", "../x", "A", "x" * 129, 1, None]
TEXTS: list[Any] = ["*.log", b"*.log", ""]
BACKUP = DirectoryBackup(id="01234567-89ab-4cde-8f01-23456789abcd", dir="/workspace")
DAYS: list[Any] = [0, -1, 10**309, 1.5, "1", True]


def box() -> Sandbox:
    """A sandbox that was never called, in no cluster."""
    return Sandbox("box")


DOORS: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
    "events": (lambda value: box().events(limit=value), LIMITS),
    "backups' limit": (lambda value: box().calls.backups(limit=value), LIMITS),
    "backups' cursor": (lambda value: box().calls.backups(cursor=value), CURSORS),
    "sandboxes' limit": (lambda value: ServiceCalls().sandboxes(limit=value), LIMITS),
    "sandboxes' cursor": (lambda value: ServiceCalls().sandboxes(cursor=value), CURSORS),
    "a read path": (lambda value: box().read_file(value), PATHS),
    "a written path": (lambda value: box().write_file(value, b""), PATHS),
    "a deleted path": (lambda value: box().delete_file(value), PATHS),
    "a listed path": (lambda value: box().list_files(value), PATHS),
    "a mode": (lambda value: box().write_file("/workspace/x", b"", mode=value), MODES),
    "a timeout": (lambda value: box().exec(["true"], timeout_s=value), TIMES),
    "a sandbox's tenant": (lambda value: SandboxCalls("box", tenant=value), TENANTS),
    "a service's tenant": (lambda value: ServiceCalls(tenant=value), TENANTS),
    "argv": (lambda value: box().exec(value), TEXTS),
    "a backup's excludes": (lambda value: box().create_backup("/workspace", excludes=value), TEXTS),
    "a full backup": (lambda value: box().create_backup("/workspace", full=value), ["yes", 1, None]),
    "excludes of persist": (lambda value: box().persist(excludes=value), TEXTS),
    "removed labels": (lambda value: box().change_labels(removed=value), TEXTS),
    "a mode of a restore": (lambda value: box().restore_backup(BACKUP, mode=value), ["", "move", 1, True]),
    "files' limit": (lambda value: ServiceCalls().backup_files(BACKUP.id, limit=value), LIMITS),
    "files' cursor": (lambda value: ServiceCalls().backup_files(BACKUP.id, cursor=value), CURSORS),
    "a path in a backup": (lambda value: ServiceCalls().backup_files(BACKUP.id, value), PATHS),
    "changes' limit": (lambda value: ServiceCalls().backup_changes(BACKUP.id, BACKUP.id, limit=value), LIMITS),
    "changes' cursor": (lambda value: ServiceCalls().backup_changes(BACKUP.id, BACKUP.id, cursor=value), CURSORS),
    "a backup that is compared": (lambda value: list(box().changes_since(value)), [BACKUP.id, "", None]),
    "a directory that is compared": (lambda value: list(box().changes_since(BACKUP, dir=value)), [*PATHS[:-2], "/"]),
    "days": (lambda value: ServiceCalls().lifecycle(expire_days=value), DAYS),
}


@pytest.mark.parametrize(("call", "values"), DOORS.values(), ids=DOORS.keys())
def test_a_meaningless_value_is_refused_before_any_call(call: Callable[[Any], object], values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidRequestError):
            call(value)


def test_a_path_outside_the_sandbox_is_refused_before_any_call() -> None:
    for path in ("/", "/etc/passwd", "/workspace2"):
        with pytest.raises(PathForbiddenError):
            box().read_file(path)
