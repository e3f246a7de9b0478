"""The log lines about processes that hold mounts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.node import holders
from actors.node.holders import Holder


@pytest.mark.parametrize("is_orphan", [False, True])
def test_the_log_names_a_held_mount_without_the_paths_of_the_node(
    monkeypatch: pytest.MonkeyPatch, is_orphan: bool
) -> None:
    lines: list[dict[str, object]] = []
    log = SimpleNamespace(
        info=lambda event, **details: lines.append(details), warning=lambda event, **details: lines.append(details)
    )
    held = Holder(7, "unshare", "/var/lib/holdfast/node/lowers/0123.1", is_orphan)
    monkeypatch.setattr(holders, "log", log)
    monkeypatch.setattr(holders, "find", lambda folders: [held])
    monkeypatch.setattr(holders, "_kill", lambda pid: None)
    assert holders.end_orphans([Path("/var/lib/holdfast/node/lowers")]) == is_orphan
    assert lines == [{"pid": 7, "name": "unshare", "mount": "0123.1"}]
