"""Recovery of a lost sandbox from a tampered bucket: each directory comes back as backed up, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.errors import SandboxUnavailableError
from actors.service.adoption import adoption
from storage import keys
from tests.integration.test_sandbox_recovery import nodes
from tests.support.node_pair import Pair
from tests.support.sandboxes import backup, sh

__all__ = ["nodes"]

SIX = ("id", "dir", "sizeBytes", "ttl", "createdAt")


def written(nodes: Pair, backup_id: str, **changes: Any) -> bytes:
    """Writes metadata without our key, as a stranger would; returns the previous bytes."""
    key = keys.metadata(backup_id)
    before = nodes.store.get(key).data
    said = {**json.loads(before), **changes}
    nodes.store.put(key, json.dumps({name: value for name, value in said.items() if value is not None}).encode())
    return before


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"ttl": 1e9}, "TAMPERED_METADATA"),
        ({"tenant": "other"}, "TAMPERED_METADATA"),
        ({"signature": None}, "TAMPERED_METADATA"),
        ({"version": 3}, "NEWER_DOCUMENT"),
    ],
)
def test_a_directory_is_missing_while_its_backup_is_tampered_with(
    nodes: Pair, changes: dict[str, Any], cause: str
) -> None:
    box = nodes.on_a()
    sh(box, "mkdir a; echo 1 > a/file")
    handle = backup(box, "/workspace/a")
    before = written(nodes, handle.id, **changes)
    again = nodes.on_b(awake=False)
    for _ in range(2):
        with pytest.raises(SandboxUnavailableError) as raised:
            again.list_files("/workspace")
        assert (raised.value.context["reason"], raised.value.context["cause"]) == ("DIRECTORY_MISSING", cause)
    nodes.store.put(keys.metadata(handle.id), before)
    assert sh(again, "cat a/file") == "1\n"


def test_a_directory_whose_backup_lost_its_signature_is_recovered_after_adoption(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "mkdir a; echo 1 > a/file")
    handle = backup(box, "/workspace/a")
    written(nodes, handle.id, **{name: None for name in json.loads(nodes.store.get(keys.metadata(handle.id)).data)
                                 if name not in SIX})  # fmt: skip
    again = nodes.on_b(awake=False)
    with pytest.raises(SandboxUnavailableError) as raised:
        again.list_files("/workspace")
    assert raised.value.context["cause"] == "UNSIGNED_METADATA"
    assert f"holdfast adopt {handle.id}" in str(raised.value.hint)
    adoption(nodes.b.config, nodes.b.catalog()).adopt("default", handle.id, "default")
    assert sh(again, "cat a/file") == "1\n"
