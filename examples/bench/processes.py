"""Memory and processor time of processes, read from /proc."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_POLL_S = 0.02
_IDLE_S = 10.0


def named(part: bytes) -> list[int]:
    """The ids of the processes below this one whose command line has `part`."""
    found = []
    for pid in _below():
        with suppress(OSError):
            if part in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def pss_mb(pid: int) -> float:
    """A process's share of memory, in MB: what it shares with n others counts 1/n."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"process {pid} has no Pss")


def cpu_s(pid: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Idle:
    """The average memory and processor time of some idle processes."""

    pss_mb: float
    cpu_ms_per_s: float

    @classmethod
    def measured(cls, pids: Sequence[int]) -> Idle:
        """Watches the processes for some seconds."""
        used_s = -sum(map(cpu_s, pids))
        time.sleep(_IDLE_S)
        used_s = (used_s + sum(map(cpu_s, pids))) / _IDLE_S
        return cls(sum(map(pss_mb, pids)) / len(pids), 1000 * used_s / len(pids))


class Peak:
    """Watches the processes below this one, and keeps how far their own memory rose above the beginning's."""

    def __init__(self) -> None:
        self.above_mb: dict[str, float] = {}
        """The highest rise, in MB, by the program's name. All of the memory of a new process counts."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(_anonymous_kib(),))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self, before: dict[int, tuple[str, int]]) -> None:
        while not self._ended.wait(_POLL_S):
            rises: dict[str, float] = {}
            for pid, (program, kib) in _anonymous_kib().items():
                rise = (kib - before.get(pid, ("", 0))[1]) * 1024 / 1e6
                rises[program] = rises.get(program, 0) + max(0, rise)
            for program, rise in rises.items():
                self.above_mb[program] = max(self.above_mb.get(program, 0), rise)


def _anonymous_kib() -> dict[int, tuple[str, int]]:
    """The name and the memory that is not of files, of each process below this one."""
    found = {}
    for pid, fields in _below().items():
        if "RssAnon" in fields:
            found[pid] = fields["Name"].strip(), int(fields["RssAnon"].split()[0])
    return found


def _below() -> dict[int, dict[str, str]]:
    """The fields of /proc/<pid>/status of each process below this one."""
    found = dict[int, dict[str, str]]()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines = (folder / "status").read_text().splitlines()
            found[int(folder.name)] = dict(line.split(":", 1) for line in lines if ":" in line)
    parents = {pid: int(fields["PPid"]) for pid, fields in found.items()}
    return {pid: fields for pid, fields in found.items() if os.getpid() in _ancestors(pid, parents)}


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    above = set[int]()
    while (pid := parents.get(pid, 0)) and pid not in above:
        above.add(pid)
    return above
