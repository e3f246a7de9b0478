"""The order in which the kernel ends processes where memory runs out, and the share of it that all sandboxes have.

Whoever serves many outlives whoever serves one: the service before the sandboxes' actors before their commands.

Source: proc_pid_oom_score_adj(5); Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

_GIB = 2**30
_MEMINFO = Path("/proc/meminfo")
_TCP_MEM = Path("/proc/sys/net/ipv4/tcp_mem")


class Rank(IntEnum):
    """Values of oom_score_adj: who has the highest is ended first."""

    DAEMON = -900
    SERVICE = 100
    """Also what a Ray that we start gives its workers, by RAY_worker_oom_score_adjustment; 1000 is Ray's own choice."""
    SANDBOX = 300
    COMMAND = 1000


def give_rank(rank: Rank, *, pid: int | None = None) -> None:
    """Gives a process, or this one, its rank. A lower one than it has needs CAP_SYS_RESOURCE, else nothing changes."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid or 'self'}/oom_score_adj").write_text(str(int(rank)))


def share_of_socket_buffers(tcp_mem: Path = _TCP_MEM) -> int:
    """The memory that the TCP sockets of one sandbox may use, in bytes: an eighth of what the machine's do unhindered.

    Beyond that, the kernel takes buffers away from every socket of the machine, the service's too. Source: tcp(7).
    """
    return int(tcp_mem.read_text().split()[0]) * resource.getpagesize() // 8


def share_of_sandboxes(groups: Iterable[Path], meminfo: Path = _MEMINFO) -> int:
    """The memory that all sandboxes of the node may use together, in bytes.

    What is left, a tenth of the node's memory and at least 1 GiB, is for the service and for the rest of the node; of
    a node with less than 2 GiB it is half.

    Args:
        groups: the groups that the service was started in; a container's limit on one is the node's memory, too.
    """
    total = (
        int(next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal:")).split()[1]) * 1024
    )
    for group in groups:
        for file in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # there is none, or "max"
                total = min(total, int((group / file).read_text()))
    return total - min(max(total // 10, _GIB), total // 2)
