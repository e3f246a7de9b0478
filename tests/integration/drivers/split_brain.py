"""A node is cut off in the middle of a backup, and comes back. Arguments: path of the report, a folder, the bucket.

The raylet is stopped by SIGSTOP: the cluster takes the node for dead, but the sandbox's old actor lives on there, and
finishes its backup after the new one has taken over. Reports the bucket's content then, and how the old call ended.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.client import get_sandbox
from actors.errors import SandboxUnavailableError
from actors.models import BackupOptions
from storage import keys
from storage.store import list_all
from tests.support.documents import committed
from tests.support.ray_cluster import PATIENCE_S, World, children, pause, resume, running
from tests.support.service import eventually

NAME = "torn"
HOLE_BYTES = 8 * 2**30


def main(folder: Path, bucket: str) -> dict[str, object]:
    with running(folder, bucket, slots=[2], settings={}) as world:
        box = get_sandbox(NAME)
        box.write_file("/workspace/file", b"backed up")
        first = box.create_backup("/workspace")
        box.write_file("/workspace/file", b"on the old node only")
        box.exec(["truncate", "-s", str(HOLE_BYTES), "/workspace/hole"])
        old_epoch = epoch(world)
        raylet = world.nodes.raylet(0)
        (old_actor,) = children(raylet, b"ray::SandboxHost")
        old_call = box.actor.create_backup.remote(BackupOptions(dir="/workspace", name="of the old actor"))
        archiver = eventually(lambda: mksquashfs_of(folder), timeout_s=PATIENCE_S)
        assert archiver is not None
        pause(archiver)
        world.nodes.add(slots=2)
        pause(raylet)
        try:
            content = recovered_content(box.read_file)
            second = box.create_backup("/workspace", name="of the new actor")
            new_epoch, new_place = epoch(world), world.place(NAME)
            resume(archiver)
            eventually(lambda: not is_alive(old_actor), timeout_s=PATIENCE_S)
        finally:
            resume(raylet)
        after = box.create_backup("/workspace", name="after it came back")
        outcome = ended(old_call)
        rows = [keys.find_backup_object(row.key) for row in list_all(world.catalog.store, "backups/")]
        stored = [found for found in rows if found is not None]
        ids = {found.backup_id for found in stored if found.is_metadata}
        return {
            "content": content.decode(),
            "places": [new_place, world.place(NAME)],
            "epochs": [old_epoch, new_epoch, epoch(world)],
            "expected": sorted([first.id, second.id, after.id]),
            "committed": sorted(record.id for record in committed(world.catalog, ids)),
            "archives": sorted(found.backup_id for found in stored if not (found.is_metadata or found.is_listing)),
            "uploads": [upload.key for upload in world.catalog.store.list_uploads("backups/")],
            "outcome": outcome,
        }


def epoch(world: World) -> int | None:
    """The epoch of the last write of the state."""
    state = world.state(NAME)
    return state.epoch if state else None


def recovered_content(read: Callable[[str], bytes]) -> bytes:
    """Returns the sandbox's content once a new actor serves it; before that only a typed, retryable error may come."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return read("/workspace/file")
        except SandboxUnavailableError:
            if time.monotonic() > deadline:
                raise


def mksquashfs_of(folder: Path) -> int | None:
    """The pid of the mksquashfs that archives in a box on one of our nodes; it has the file `hole` open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() != "mksquashfs":
                continue
            mounts = (process / "mountinfo").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "/".join(folder.parts[-3:]) in mounts:  # not another session's, whose nodes have the same names
            return int(process.name)
    return None


def is_alive(pid: int) -> bool:
    """True if a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ended(ref: Any) -> str:
    """Returns how the old actor's call ended for its caller."""
    try:
        return f"made {ray.get(ref, timeout=PATIENCE_S).id}"
    except ray.exceptions.RayError as e:
        return type(e).__name__


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main(Path(sys.argv[2]), sys.argv[3])))
