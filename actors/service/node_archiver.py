"""The tools of archives for work on a node that belongs to no sandbox."""

from __future__ import annotations

from pathlib import Path

from actors.config import SandboxConfig
from actors.node.archiver import Archiver
from actors.node.bubblewrap import Box
from actors.node.survey import Limits
from actors.node.tree import Tree


def node_archiver(config: SandboxConfig, spool: Path, hostname: str) -> Archiver:
    """An archiver for files in the folder `spool`; `hostname` is that of its boxes."""
    limits, uid = config.backup, config.node.sandbox_uid
    return Archiver(
        Box(uid=uid, hostname=hostname, binds=()),
        Tree(spool, tops=(), uid=uid),
        limits=Limits(limits.inodes, limits.source_bytes, limits.hole_bytes, limits.depth),
        memory_bytes=limits.memory_bytes,
    )
