"""What a failed run has to say of the node: who holds what, and the last complaints of the sandboxes' actors."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress

from tests.support.mount_leaks import loop_devices, processes_about
from tests.support.service import Service

_LINES = 60


def evidence(service: Service) -> str:
    """To be asked while the service still runs. The actors' logs are kept in its home."""
    ours = service.pids()
    holders = [
        f"{pid} {name} {'of the service' if pid in ours else 'of somebody else'}, mount namespace {_namespace(pid)}"
        for pid, name in processes_about(str(service.data_dir)).items()
    ]
    return "\n".join(["loop devices:", *loop_devices(service.data_dir), "processes:", *holders, *_complaints(service)])


def _namespace(pid: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/mnt")
    return "gone"


def _complaints(service: Service) -> list[str]:
    found: list[tuple[str, str]] = []
    for log in service.ray_folder.rglob("worker-*.err"):
        shutil.copy(log, service.home)
        for line in log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and said.get("level") in ("warning", "error"):
                    found.append((str(said.get("timestamp")), line[:600]))
    return ["complaints:", *(line for _, line in sorted(found)[-_LINES:])]
