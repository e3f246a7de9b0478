"""Memory and processor time of processes, read from /proc."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_POLL_S = 0.02


def named(part: bytes) -> list[int]:
    """The ids of the processes whose command line has `part`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if part in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
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


class Peak:
    """Watches all processes of this machine, and keeps how far their own memory rose above the beginning's."""

    def __init__(self) -> None:
        self.above_mb: dict[str, float] = {}
        """The highest rise, in MB, by the program's name."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(self._anonymous(),))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self, before: dict[tuple[int, str], int]) -> None:
        while not self._ended.wait(_POLL_S):
            rises: dict[str, float] = {}
            for process, kib in self._anonymous().items():
                rise = (kib - before.get(process, 0)) * 1024 / 1e6
                rises[process[1]] = rises.get(process[1], 0) + max(0, rise)
            for program, rise in rises.items():
                self.above_mb[program] = max(self.above_mb.get(program, 0), rise)

    def _anonymous(self) -> dict[tuple[int, str], int]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            if int(folder.name) == os.getpid():
                continue
            with suppress(OSError):
                fields = dict(
                    line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
                )
                if "RssAnon" in fields:
                    found[int(folder.name), fields["Name"].strip()] = int(fields["RssAnon"].split()[0])
        return found
