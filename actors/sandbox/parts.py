"""The parts of a sandbox that work on its node, made from its settings and connected. None of them is in use yet."""

from __future__ import annotations

import os

from actors.config import SandboxConfig
from actors.errors import MountLostError
from actors.logs import log
from actors.models import WRITABLE_ROOTS
from actors.node.archive_cache import ArchiveCache
from actors.node.archiver import Archiver
from actors.node.bubblewrap import Bind, Box
from actors.node.cgroup import Cgroup
from actors.node.drivers import Driver
from actors.node.errors import NodeError
from actors.node.idmapped import View, obstacle
from actors.node.kept import KeptArchives
from actors.node.layers import Layer, Layers
from actors.node.survey import Limits
from actors.node.tree import Tree
from actors.node.user_namespace import UserNamespace
from actors.node.verified import Verified
from actors.node_layout import NodeLayout
from actors.sandbox.commands import Commands
from actors.sandbox.node_resources import NodeResources
from actors.sandbox.overlays import Overlays
from actors.sandbox.quiescence import Quiescence
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.restored_record import RestoredRecord
from actors.sandbox.transfers import Transfers
from actors.sandbox.tree_lock import TreeLock
from actors.state.node_record import kept_driver, twin_file


class Parts:
    """The parts of one sandbox on this node. They know neither the bucket nor the state document."""

    def __init__(self, tenant: str, sandbox: str, config: SandboxConfig, *, driver: Driver | None) -> None:
        """`driver` is the one that the node offers; None if it cannot mount layers."""
        self._sandbox = sandbox
        layout = NodeLayout(config.node)
        folder = layout.box(tenant, sandbox)
        root, uid = folder / "root", config.node.sandbox_uid
        record = folder / "sandbox.json"
        driver = kept_driver(record, driver)
        user_namespace = UserNamespace(
            layout.namespace_owners,
            uid,
            sharing=obstacle(driver, os.uname().release),
            on_sharing=lambda reason: log.warning("user_shared", sandbox=sandbox, reason=reason),
            on_obstacle=lambda reason: log.warning("user_limits_shared", sandbox=sandbox, reason=reason),
        )
        box = Box(
            uid=uid,
            hostname=sandbox[:63],
            binds=tuple(Bind(root / top.lstrip("/"), top, writable=True) for top in WRITABLE_ROOTS),
            network=config.node.network,
            user_namespace=user_namespace,
        )
        self.node = layout.identity()
        self.spool = folder / "spool"
        self.tree = Tree(root, tops=WRITABLE_ROOTS, uid=uid, view=View(root, user_namespace))
        self.cgroup = Cgroup(
            layout.sandbox_cgroup(tenant, sandbox),
            memory_bytes=config.exec.memory_bytes,
            processes=config.exec.processes,
        )
        self.verified = Verified(layout.verified)
        self.cache = ArchiveCache(layout.cache, max_bytes=config.node.cache_max_bytes, verified=self.verified)
        self.resources = NodeResources(
            layout, tenant, sandbox, cgroup=self.cgroup, user_namespace=user_namespace, cache=self.cache
        )
        limits = config.backup
        self.archiver = Archiver(
            box,
            self.tree,
            limits=Limits(limits.inodes, limits.source_bytes, limits.hole_bytes, limits.depth),
            memory_bytes=limits.memory_bytes,
        )
        self.layers = Layers(
            folder / "layers", layout.lowers, driver=driver, on_lost=self._revive, user_namespace=user_namespace
        )
        kept = KeptArchives(folder / "archives", self.verified)
        self.restored = RestoredDirectories(
            folder, self.tree, RestoredRecord(twin_file(record)), Overlays(self.tree, self.layers), kept
        )
        self.tree_lock = TreeLock(lambda: self.restored.is_whole)
        self.commands = Commands(
            box,
            self.cgroup,
            limits=config.exec,
            tree_lock=self.tree_lock,
            has_lost_mount=lambda: self.layers.has_lost or self.restored.is_disturbed(),
        )
        self.transfers = Transfers(self.tree, self.commands, self.tree_lock, spool=self.spool)
        self.quiescence = Quiescence(self.commands, self.transfers, self.tree_lock, kept)

    def _revive(self, layer: Layer) -> None:
        """Mounts a layer again after its daemon died, with the same upper. Stops all commands and transfers first."""
        lost = MountLostError("A file system daemon under the directory died; it has been mounted anew.")
        with self.tree_lock.repairing():
            try:
                self.restored.revive(layer, lambda: self.quiescence.stop(lost))
                log.warning("layer_revived", sandbox=self._sandbox, layer=layer.id)
            except (NodeError, OSError) as e:  # the tree is not whole now, so the next call mounts it anew
                log.error("layer_lost", sandbox=self._sandbox, layer=layer.id, error=type(e).__name__)
