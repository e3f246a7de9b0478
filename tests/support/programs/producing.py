"""Produces an entry of the cache of archives once it is told to."""

from __future__ import annotations

import sys
from pathlib import Path

from actors.node.archive_cache import ArchiveCache


def produce(work: Path) -> tuple[Path, str]:
    (work / "made").write_text("made")
    print("ready", flush=True)
    sys.stdin.readline()
    return work / "made", "0" * 64


ArchiveCache(Path(sys.argv[1]), max_bytes=1_000_000).obtain(sys.argv[2], Path(sys.argv[3]), produce)
print("produced", flush=True)
