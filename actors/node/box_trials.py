"""Every kind of box that is ever built on a node, tried for what it is needed for.

One row for each use of `boxed` in the service. Whoever adds another use adds a row: `doctor` then tries it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from actors.node.boxed_tools import run_boxed
from actors.node.bubblewrap import Bind, Box, Identity
from actors.node.errors import NodeError
from actors.node.process import printable
from actors.node.user_namespace import UserNamespace

_TRIED_S = 10.0
_OWN = "/own"


@dataclass(frozen=True, slots=True)
class BoxTrial:
    """One kind of box. `script` is a shell's, and fails where the box does not allow what it is needed for."""

    name: str
    purpose: str
    identity: Identity
    script: str
    network: bool = False


@dataclass(frozen=True, slots=True)
class TriedBox:
    """What came of a trial: `obstacle` is the box's or the tool's own words, None where it works."""

    trial: BoxTrial
    obstacle: str | None


def box_trials(*, network: bool) -> list[BoxTrial]:
    """The kinds of box that a node's settings need."""
    trials = [
        BoxTrial("sandbox", "runs a command as an unprivileged user", Identity.COMMAND, f"touch {_OWN}/written"),
        BoxTrial("box reader", "mksquashfs and tar read a file of mode 0", Identity.READER, f"cat {_OWN}/closed"),
        BoxTrial(
            "box keeper",
            "unsquashfs gives a file its owner and mode",
            Identity.KEEPER,
            f"touch {_OWN}/kept && chmod 2710 {_OWN}/kept && chown {{uid}}:{{uid}} {_OWN}/kept",
        ),
        BoxTrial(
            "box converter",
            "unsquashfs unpacks an archive from elsewhere without privilege",
            Identity.COMMAND,
            f"cat {_OWN}/archive > {_OWN}/unpacked",
        ),
    ]
    if network:
        written = f"touch {_OWN}/networked"
        trials.append(
            BoxTrial("box network", "runs a command with the node's network", Identity.COMMAND, written, network=True)
        )
    return trials


def tried_boxes(uid: int, *, network: bool) -> Iterator[TriedBox]:
    """Builds each kind of box round a small script, over a folder that is removed afterwards."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-doctor-"))
        own = Path(folder, "own")
        own.mkdir()
        for name, mode in (("closed", 0), ("archive", 0o400)):
            (own / name).write_text(name)
            (own / name).chmod(mode)
        for path in (own, own / "closed", own / "archive"):
            os.chown(path, uid, uid)
        namespace = stack.enter_context(closing(UserNamespace(Path(folder, "owners"), uid)))
        for trial in box_trials(network=network):
            yield TriedBox(trial, _obstacle(trial, uid, own, namespace))


def _obstacle(trial: BoxTrial, uid: int, own: Path, namespace: UserNamespace) -> str | None:
    binds = (Bind(own, _OWN, writable=True),)
    box = Box(uid=uid, hostname="doctor", binds=binds, network=trial.network, user_namespace=namespace)
    command = ["sh", "-c", trial.script.format(uid=uid)]
    try:
        ended = run_boxed(box, command, identity=trial.identity, timeout_s=_TRIED_S)
    except (NodeError, ValueError, OSError) as e:
        return str(e)
    return None if ended.status == 0 else printable(ended.stderr) or f"status {ended.status}"
