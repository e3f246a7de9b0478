"""The order in which the kernel ends processes when memory runs out, and the sandboxes' shares of memory.

A process that serves many outlives one that serves few: the kernel ends commands first, then the sandboxes' actors,
then the service.

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
    """Values of oom_score_adj: the kernel ends the process with the highest value first."""

    DAEMON = -900
    SERVICE = 100
    """Also the value of the workers of a Ray that we start (RAY_worker_oom_score_adjustment); Ray's own is 1000."""
    SANDBOX = 300
    COMMAND = 1000


def give_rank(rank: Rank, *, pid: int | None = None) -> None:
    """Sets the rank of a process, by default this one. Lowering it needs CAP_SYS_RESOURCE, else nothing changes."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid or 'self'}/oom_score_adj").write_text(str(int(rank)))


def share_of_socket_buffers(tcp_mem: Path = _TCP_MEM) -> int:
    """The memory that the TCP sockets of one sandbox may use, in bytes: an eighth of the low mark in tcp_mem.

    Above that mark the kernel takes buffers away from every socket of the machine, the service's too. Source: tcp(7).
    """
    return int(tcp_mem.read_text().split()[0]) * resource.getpagesize() // 8


def share_of_sandboxes(groups: Iterable[Path], meminfo: Path = _MEMINFO) -> int:
    """The memory that all sandboxes of the node may use together, in bytes.

    The rest is for the service and the node: a tenth of the node's memory, but at least 1 GiB; on a node with less
    than 2 GiB, half.

    Args:
        groups: the cgroups that the service was started in; a container's limit on one of them bounds the node's
            memory.
    """
    total = (
        int(next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal:")).split()[1]) * 1024
    )
    for group in groups:
        for file in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # no such file, or no limit ("max")
                total = min(total, int((group / file).read_text()))
    return total - min(max(total // 10, _GIB), total // 2)
