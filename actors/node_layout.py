"""The layout of a node: paths of the service's folders and files, and names of its control groups."""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from pathlib import Path

from actors.config import NodeConfig
from actors.logs import log
from actors.node.driver_choice import choose
from actors.node.drivers import Driver, setting_of
from actors.node.errors import is_full
from actors.node.identity import identity
from actors.node.removal import remove_tree
from actors.node.verified import Verified

_FILE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


class NodeLayout:
    """The folders, files and control groups of one node."""

    def __init__(self, node: NodeConfig) -> None:
        self.data_dir = node.data_dir
        self.root = node.data_dir / "node"
        self.cache = self.root / "cache"
        self.lowers = self.root / "lowers"
        self.trash = self.root / "trash"
        self.adoptions = self.root / "adoptions"
        self.flattenings = self.root / "flattenings"
        self.verified = node.data_dir / "verified"
        self.driver = self.root / "driver"
        self.namespace_owners = self.root / "namespace-owners"
        self.mounting = (self.root / "boxes", self.lowers, self.driver)
        """The folders below which the service mounts."""

    @property
    def cgroup(self) -> str:
        """The control group, below the service's own, that holds the groups of all sandboxes of this node."""
        return f"holdfast-{self.name}"

    @property
    def name(self) -> str:
        """The identity as a file name: hashed if it is an operator's own and unfit for one."""
        found = self.identity()
        return found if _FILE_NAME.fullmatch(found) else hashlib.sha256(found.encode()).hexdigest()[:32]

    def identity(self) -> str:
        """The identity that tells this data folder from every other node's. Raises CorruptRecordError."""
        return identity(self.root)

    def box(self, tenant: str, sandbox_id: str) -> Path:
        """The sandbox's folder: its files on this node."""
        return self.root / "boxes" / tenant / sandbox_id

    def sandbox_cgroup(self, tenant: str, sandbox_id: str) -> str:
        """The control group of one sandbox."""
        return f"{self.cgroup}/{hashlib.sha256(f'{tenant}/{sandbox_id}'.encode()).hexdigest()[:24]}"

    def prepare(self) -> None:
        """Makes the trash folder ahead of time: a full disk has no room for it. Raises OSError."""
        self.trash.mkdir(parents=True, exist_ok=True, mode=0o700)

    def remove(self, folder: Path) -> None:
        """Discards a sandbox's folder in one step, then deletes it. Raises NodeError, OSError.

        On a full disk it skips the steps that need room, because it makes some.
        """
        doomed = self._discarded(folder)
        with contextlib.suppress(OSError):  # if this fails, archives that others use are verified once more
            Verified(self.verified).unlink_all(doomed / "archives")
        remove_tree(doomed)

    def _discarded(self, folder: Path) -> Path:
        """Makes the folder no sandbox's any more; returns its path: in the trash, if there is room for its name."""
        doomed = self.trash / uuid.uuid4().hex
        try:
            self.prepare()
            folder.rename(doomed)
        except OSError as e:
            if not is_full(e):
                raise
            for record in ("sandbox.json", "sandbox.json.copy"):  # without these it is no sandbox's either
                (folder / record).unlink(missing_ok=True)
            return folder
        return doomed

    def sandbox_lock(self, tenant: str, sandbox_id: str) -> Path:
        """The file of the sandbox lock. Outside of the sandbox's folder, which comes and goes."""
        return self.root / "presence" / f"{tenant}.{sandbox_id}"


def choose_driver(node: NodeConfig) -> Driver | None:
    """The node's mount driver; None if backups can be restored as copies only. See `driver_choice.choose`."""
    chosen = choose(setting_of(node.driver), NodeLayout(node).driver)
    if chosen is None and node.driver != "none":
        log.warning("restores_are_copies")
    return chosen
