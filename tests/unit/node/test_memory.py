from __future__ import annotations

from pathlib import Path

import pytest

from actors.node.memory import share_of_sandboxes

GIB = 2**30


@pytest.mark.parametrize(
    ("total", "limit", "share"),
    [
        (100 * GIB, None, 90 * GIB),
        (8 * GIB, None, 7 * GIB),
        (GIB, None, GIB // 2),
        (100 * GIB, "max\n", 90 * GIB),
        (100 * GIB, f"{8 * GIB}\n", 7 * GIB),
        (8 * GIB, f"{2**63 - 4096}\n", 7 * GIB),  # cgroup v1's value for no limit
    ],
)
def test_sandboxes_get_the_memory_that_the_service_and_the_node_do_not_need(
    tmp_path: Path, total: int, limit: str | None, share: int
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal:       {total // 1024} kB\nMemFree:        1 kB\n")
    for file in ("memory.max", "memory.limit_in_bytes"):
        group = tmp_path / file.replace(".", "-")
        group.mkdir()
        if limit is not None:
            (group / file).write_text(limit)
        assert share_of_sandboxes([tmp_path / "none", group], meminfo) == share
