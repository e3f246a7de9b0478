"""Which drivers work on this node: found out by really mounting a small archive with each.

Looking for modules, capabilities and device nodes one by one would never be complete: containers, seccomp filters
and the file system under the data folder all have a say.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from actors.node import mounting, process
from actors.node.drivers import Driver
from actors.node.errors import DriverUnavailableError, NodeError
from actors.node.layers import Layer, Layers

_NEEDS = {
    Driver.KERNEL: "It needs CAP_SYS_ADMIN, loop devices, the squashfs and overlay modules, and ext4 or xfs under it.",
    Driver.MIXED: "It needs CAP_SYS_ADMIN, /dev/fuse, the overlay module, and ext4 or xfs under it.",
    Driver.FUSE: "It needs CAP_SYS_ADMIN and /dev/fuse.",
}


def available(folder: Path) -> dict[Driver, str | None]:
    """What each driver lacks to keep layers under `folder`, in a sentence; None for those that work."""
    return {driver: obstacle(driver, folder) for driver in Driver}


def choose(setting: Literal["auto"] | Driver, folder: Path) -> Driver:
    """The driver to use for layers under `folder`: the one that was asked for, or the best that works.

    Raises:
        DriverUnavailableError: it does not work here, or none does.
    """
    candidates = list(Driver) if setting == "auto" else [Driver(setting)]
    obstacles = {}
    for driver in candidates:
        obstacles[driver] = obstacle(driver, folder)
        if obstacles[driver] is None:
            return driver
    raise DriverUnavailableError(
        f"This node cannot mount with the driver {' or '.join(candidates)}.",
        hint=" ".join(f"{driver}: {reason}" for driver, reason in obstacles.items()),
    )


@functools.cache
def obstacle(driver: Driver, folder: Path) -> str | None:
    """What keeps `driver` from working under `folder`; tried once per process."""
    path = process.ENVIRONMENT["PATH"]
    for program, package in {**driver.programs, "mksquashfs": "squashfs-tools"}.items():
        if shutil.which(program, path=path) is None:
            return f"{program} is missing: install the package {package}."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".driver-", dir=folder) as scratch:
            _try(driver, Path(scratch))
    except (NodeError, OSError) as e:
        return f"{e} {_NEEDS[driver]}"
    return None


def _try(driver: Driver, scratch: Path) -> None:
    """Mounts an archive, writes to the layer and removes it again; raises what goes wrong."""
    archive = scratch / "tiny.sqsh"
    (scratch / "tree").mkdir()
    process.check(["mksquashfs", "tree", archive.name, "-quiet", "-no-progress"], cwd=str(scratch))
    layers = Layers(scratch / "layers", scratch / "lowers", driver=driver, on_lost=_ignore)
    try:
        layer = layers.create(archive, "0" * 64)
        (layer.merged / "written").touch()
        layers.discard(layer)
    finally:
        mounting.sweep(scratch)


def _ignore(layer: Layer) -> None:
    """The trial's layer is gone in a moment anyway."""
