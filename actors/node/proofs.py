"""The proof that a driver's layers behave like a plain directory.

It runs the same operations (`trials`) in a layer and in a plain directory beside it. Both must show the same
afterwards, and so must the layer after an unmount and a new mount. They may differ only where the driver declares a
`Limit`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from actors.node import mounting, process, trials
from actors.node.drivers import Driver, Limit
from actors.node.errors import NodeError
from actors.node.layers import Layer, Layers

_TRIALS_S = 30.0
_EXCUSED = {
    Limit.LINKS: trials.restored_links.__name__,
    Limit.SPECIAL_LINKS: trials.special_links.__name__,
    Limit.FIFOS: trials.special_files.__name__,
    Limit.NAMES: trials.strange_names.__name__,
}
"""The trial whose result is not compared, for each limit that changes it. EXDEV (Limit.DIRECTORIES) leaves the same
tree."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of one trial: what it noticed on the way, each name with its description, or its error."""

    noticed: tuple[str, ...] = ()
    names: dict[str, object] = field(default_factory=dict)
    error: str | None = None


def failures(driver: Driver, scratch: Path, sha256: str) -> list[str]:
    """Mounts a layer below the new folder `scratch`, runs all trials, and returns a line for each that failed.

    `sha256` is taken for the archive's hash. In every case, nothing stays mounted or open.

    Raises:
        NodeError, OSError: the driver cannot mount, or is too broken to go on.
    """
    plain = scratch / "plain"
    plain.mkdir()
    _run("seed", plain, driver)
    archive = scratch / "trials.sqsh"
    process.check(["mksquashfs", plain.name, archive.name, "-quiet", "-no-progress"], cwd=str(scratch))
    layers = Layers(scratch / "layers", scratch / "lowers", driver=driver, on_lost=_ignore, is_trial=True)
    try:
        layer = layers.create(archive, sha256)
        done = _run("act", layer.merged, driver)
        layers.close(layer)
        again = _run("look", layers.open(layer.id, archive, sha256).merged, driver)
        layers.discard(layer)
    finally:
        with contextlib.suppress(NodeError):  # the first error is the one that counts
            layers.close_all()
        mounting.sweep(scratch)
    expected = _run("act", plain, driver)
    shutil.rmtree(plain)
    return [line for name in expected for line in _compare(name, driver, expected[name], done[name], again[name])]


def _run(command: str, folder: Path, driver: Driver) -> dict[str, Seen]:
    argv = [sys.executable, "-I", "-S", os.path.abspath(trials.__file__), command, str(folder)]
    said = json.loads(process.check([*argv, str(driver.max_name_bytes)], timeout_s=_TRIALS_S))
    return {
        name: Seen(tuple(row.get("noticed", ())), row.get("seen", {}), row.get("error")) for name, row in said.items()
    }


def _compare(name: str, driver: Driver, expected: Seen, done: Seen, again: Seen) -> list[str]:
    """Returns a line if the trial failed, and none if it succeeded or if a limit of the driver excuses it."""
    if any(_EXCUSED.get(limit) == name for limit in driver.limits):
        return []
    wrong = _difference(expected, done, may_copy=Limit.DIRECTORIES in driver.limits)
    if wrong is None and (later := _difference_of_names(expected, again)) is not None:
        wrong = f"{later} after the next mount"
    if wrong is None:
        return []
    sentence = " ".join((getattr(trials, name).__doc__ or name).split())
    return [f"{name}: {wrong}. Wanted: {sentence}"]


def _difference(expected: Seen, seen: Seen, *, may_copy: bool) -> str | None:
    if seen.error != expected.error:
        return f"it ends with {seen.error}"
    noticed = [word for word in seen.noticed if not (may_copy and word == trials.EXDEV)]
    if noticed != list(expected.noticed):
        return f"it met {', '.join(noticed) or 'nothing'} instead of {', '.join(expected.noticed) or 'nothing'}"
    return _difference_of_names(expected, seen)


def _difference_of_names(expected: Seen, seen: Seen) -> str | None:
    if seen.error is not None:
        return f"looking at it ends with {seen.error}"
    for name in sorted(expected.names.keys() | seen.names.keys()):
        if name not in seen.names:
            return f"{name[:40]} is gone"
        if name not in expected.names:
            return f"{name[:40]} is there again"
        if seen.names[name] != expected.names[name]:
            return f"{name[:40]} is not what it was made"
    return None


def _ignore(layer: Layer) -> None:
    """Does nothing: the layer of a proof is removed soon anyway."""
