"""`doctor`: the node's findings in the form that travels."""

from __future__ import annotations

from pathlib import Path

from actors.config import DEFAULT_UID
from actors.models import Check
from actors.node.doctor import examine


def checks(data_dir: Path, *, uid: int = DEFAULT_UID, network: bool = False) -> list[Check]:
    """Tries everything that sandboxes on this machine need. `network`: whether commands have the node's network."""
    return [
        Check(name=found.name, ok=found.ok, required=found.required, detail=found.detail, fix=found.fix)
        for found in examine(data_dir, uid, network=network)
    ]
