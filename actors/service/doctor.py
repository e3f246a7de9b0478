"""The findings of `holdfast doctor` on a node, as models that travel between processes."""

from __future__ import annotations

from pathlib import Path

from actors.config import DEFAULT_UID, DriverChoice
from actors.models import Check
from actors.node.doctor import RESTORES, examine
from actors.node.drivers import setting_of

__all__ = ["RESTORES", "checks"]


def checks(
    data_dir: Path,
    *,
    uid: int = DEFAULT_UID,
    network: bool = False,
    driver: DriverChoice = "auto",
    thorough: bool = True,
) -> list[Check]:
    """Tries everything that sandboxes on this machine need; see `actors.node.doctor.examine`."""
    setting = setting_of(driver)
    return [
        Check(name=found.name, ok=found.ok, required=found.required, detail=found.detail, fix=found.fix)
        for found in examine(data_dir, uid, network=network, driver=setting, thorough=thorough)
    ]
