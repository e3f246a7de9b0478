"""A Ray driver of a third party: the main flow through `actors.client`, with nothing but the cluster's address."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from pathlib import Path

import ray

from actors.client import get_sandbox
from actors.errors import (
    BackupExpiredError,
    BackupNotFoundError,
    FileNotFoundInSandboxError,
    HoldfastError,
    InvalidBackupConfigError,
    InvalidRequestError,
)
from actors.models import BackupOptions, DirectoryBackup


def main(sandbox_id: str) -> dict[str, object]:
    box = get_sandbox(sandbox_id)
    box.write_file("/workspace/src/file", b"kept\n")
    backup = box.create_backup("/workspace", name="before upgrade", ttl=3600)
    assert isinstance(backup, DirectoryBackup)
    assert box.exec(["sh", "-c", "rm -rf src; exit 3"]).exit_code == 3
    kept = DirectoryBackup.model_validate_json(backup.model_dump_json())
    result = box.restore_backup(kept)
    assert (result.success, result.dir, result.id) == (True, "/workspace", backup.id)
    assert box.read_file("/workspace/src/file") == b"kept\n"

    ref = box.actor.create_backup.remote(BackupOptions(dir="/workspace", name="by the raw handle"))
    raw: DirectoryBackup = ray.get(ref)
    assert [info.id for info in box.backups()] == [raw.id, backup.id]

    fork = get_sandbox(f"{sandbox_id}-fork")
    fork.restore_backup(raw, dir="/app/fork", mode="copy")
    assert [entry.name for entry in fork.list_files("/app/fork/src")] == ["file"]
    fork.destroy()

    async def awaited() -> bytes:
        return b"".join([piece async for piece in box.calls.read_file("/workspace/src/file")])

    assert asyncio.run(awaited()) == b"kept\n"
    expired = box.create_backup("/workspace", ttl=30)
    return {
        "id": backup.id,
        "not found": _caught(lambda: box.restore_backup(DirectoryBackup(id=str(uuid.uuid4()), dir="/workspace"))),
        "expired": _caught(lambda: box.restore_backup(expired)),
        "bad dir": _caught(lambda: box.create_backup("/etc")),
        "bad ttl": _caught(lambda: box.create_backup("/workspace", ttl=float("nan"))),
        "bad handle": _caught(lambda: box.restore_backup({"id": backup.id})),  # type: ignore[arg-type]
        "missing dir": _caught(lambda: box.create_backup("/workspace/missing")),
        "missing file": _caught(lambda: box.read_file("/workspace/missing")),
        "bad name": _caught(lambda: get_sandbox("Not A Name")),
        "environment": sorted(name for name in os.environ if name.startswith(("R2_", "AWS_", "SANDBOX_", "HOLDFAST_"))),
    }


def _caught(act: object) -> str:
    """Returns the name of the `except` clause that catches the error: each error keeps its own class across Ray."""
    assert callable(act)
    try:
        act()
    except BackupNotFoundError:
        return "BackupNotFoundError"
    except BackupExpiredError:
        return "BackupExpiredError"
    except InvalidBackupConfigError:
        return "InvalidBackupConfigError"
    except FileNotFoundInSandboxError:
        return "FileNotFoundInSandboxError"
    except InvalidRequestError:
        return "InvalidRequestError"
    except HoldfastError as e:
        return f"HoldfastError {e.code}"
    return "nothing"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main(sys.argv[2])))
