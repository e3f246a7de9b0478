"""Evidence from the node after a failed run: processes that hold its files, and the last warnings of the actors."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress

from tests.support.mount_leaks import loop_devices, processes_about
from tests.support.service import Service, files_below

_LINES = 60


def evidence(service: Service) -> str:
    """A report for people, made while the service still runs. Copies the actors' logs into the service's home."""
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
    for log in [file for file in files_below(service.ray_folder) if file.match("worker-*.err")]:
        shutil.copy(log, service.home)
        for line in log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and said.get("level") in ("warning", "error"):
                    found.append((str(said.get("timestamp")), line[:600]))
    return ["complaints:", *(line for _, line in sorted(found)[-_LINES:])]
