"""Trials of each kind of box that the service builds, run by `holdfast doctor` and at the start of `serve`.

Each way in which the service uses `boxed` has a trial. Add one with each new use.
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
    """One kind of box. `script`, for a shell, fails if the box does not allow what its `purpose` needs."""

    name: str
    purpose: str
    identity: Identity
    script: str
    network: bool = False


@dataclass(frozen=True, slots=True)
class TriedBox:
    """The result of a trial. `obstacle` is the error output of the box or the script; None on success."""

    trial: BoxTrial
    obstacle: str | None


def box_trials(*, network: bool) -> list[BoxTrial]:
    """The trials for a node. `network` adds the box with the node's network."""
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
    """Runs each trial's script in its kind of box, over a temporary folder."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-doctor-"))
        own = Path(folder, "own")
        own.mkdir()
        for name, mode in (("closed", 0), ("archive", 0o400)):
            (own / name).write_text(name)
            (own / name).chmod(mode)
        namespace = stack.enter_context(closing(UserNamespace(Path(folder, "owners"), uid)))
        for path in (own, own / "closed", own / "archive"):
            os.chown(path, namespace.user, namespace.user)
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
