"""The sweeper of a node, run by the node's host: removes what no living sandbox owns, and nothing of a living one.

The process of an awake sandbox holds the sandbox lock (`SandboxLock`), which ends with that process. If the lock is
free, an actor that was killed has left the sandbox's mounts and processes. The sandbox's files stay: it is only asleep.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from actors.config import NodeConfig
from actors.logs import log
from actors.node import actor_group, former_groups, holders, mountinfo
from actors.node.archive_cache import ArchiveCache
from actors.node.cgroup import Cgroup
from actors.node.errors import MountBusyError, NodeError
from actors.node.lowers import Lowers
from actors.node.mounting import sweep
from actors.node.removal import remove_tree
from actors.node.verified import Verified
from actors.node.work_folder import remove_unless_in_use
from actors.node_layout import NodeLayout
from actors.sandbox.sandbox_lock import SandboxLock
from actors.service.scrub import Scrub
from actors.state import location
from actors.state.document import NodeRef
from storage.catalog import BackupCatalog
from storage.errors import StorageError

SWEEP_S = 300.0
"""Pause between two sweeps, at least."""
_SHARE = 10.0
"""A pause is at least so many times as long as the sweep before it: each reads the state of every sandbox here."""
_UNMOUNT_S = 5.0
_BEING_DELETED_S = 600.0
"""Time for which trash is left to the process that is deleting it."""
OUT_OF_DATE_S = 86_400.0
"""Time for which the files of a sandbox are kept that was recovered elsewhere while this node was away."""
_MARK = "out-of-date"


@dataclass(slots=True)
class Swept:
    """The numbers of things that a sweep has removed; `stuck` names the sandboxes that it could not sweep."""

    mounts: int = 0
    spools: int = 0
    out_of_date: int = 0
    lowers: int = 0
    trash: int = 0
    works: int = 0
    stuck: list[str] = field(default_factory=list)


class NodeSweeper:
    """The sweeper of one node. It also holds the node's scrub, and answers questions about the node's files."""

    def __init__(
        self, node: NodeConfig, catalog: BackupCatalog | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._layout = NodeLayout(node)
        self._clock = clock
        self._catalog = catalog
        verified = Verified(self._layout.verified)
        self._cache = ArchiveCache(self._layout.cache, max_bytes=node.cache_max_bytes, verified=verified)
        self.scrub = Scrub(self._cache, self._layout.root / "boxes", verified)
        self._at_a_box = threading.Lock()
        """Held while one sandbox is being swept: `SandboxLock` does not exclude the threads of one process."""
        self._rests = False

    def rest(self) -> None:
        """Sweeps no sandbox until `resume`. Returns once the sweep of the current one has ended."""
        self._rests = True
        with self._at_a_box:
            pass

    def resume(self) -> None:
        """Sweeps sandboxes again."""
        self._rests = False

    def identity(self) -> str:
        """Returns the identity of this node."""
        return self._layout.identity()

    def has_archive(self, backup_id: str) -> bool:
        """Tells whether the node's cache holds a backup's archive."""
        return self._cache.holds(backup_id)

    def record_changed_at(self, tenant: str, sandbox: str) -> float | None:
        """Returns the time of the last change of a sandbox's record; None if the sandbox's files are not here."""
        home = self._layout.box(tenant, sandbox)
        if (home / _MARK).exists():
            return None
        try:
            return (home / "sandbox.json").stat().st_mtime
        except FileNotFoundError:
            return None

    def step(self) -> float:
        """Sweeps once; returns the seconds until the next sweep."""
        began = self._clock()
        self.sweep()
        return max(SWEEP_S, _SHARE * (self._clock() - began))

    def sweep(self) -> Swept:
        """Removes what nobody owns. Goes on when something cannot be removed, and logs it."""
        swept = Swept()
        with contextlib.suppress(OSError):  # the disk is full, and an earlier sweep has made the folders
            self._layout.prepare()
        self._end_orphans()
        for tenant, sandbox, home in self._boxes():
            lives_elsewhere = self._lives_elsewhere(tenant, sandbox)  # before the lock: the bucket may be slow
            with self._at_a_box:
                if self._rests:
                    break
                self._sweep_unless_awake(tenant, sandbox, home, swept, lives_elsewhere=lives_elsewhere)
        self._sweep_groups()
        self._sweep_shared(swept)
        log.info("node_swept", **{name: getattr(swept, name) for name in Swept.__slots__})
        return swept

    def _end_orphans(self) -> None:
        """Ends processes that dead actors have left, and boxes that hold our mounts; detaches unused loop devices."""
        try:
            actor_group.end_orphans(self._layout.cgroup)
            folders = self._layout.mounting
            holders.end_orphans(folders)
            for device in holders.unused_loop_devices([self._layout.root.resolve()]):
                log.warning("loop_device_detached", device=device.name)
                holders.detach(device)
        except (NodeError, OSError) as e:
            log.error("orphans_left_behind", error=type(e).__name__)

    def _sweep_groups(self) -> None:
        """Removes the control groups of earlier runs of the service, in other places or under other names."""
        try:
            Cgroup.remove_tree(self._layout.cgroup, but_ours=True)
            former_groups.remove(self._layout.data_dir)
        except (NodeError, OSError) as e:
            log.error("groups_left_behind", error=type(e).__name__)

    def _sweep_unless_awake(
        self, tenant: str, sandbox: str, home: Path, swept: Swept, *, lives_elsewhere: bool | None
    ) -> None:
        sandbox_lock = SandboxLock(self._layout.sandbox_lock(tenant, sandbox))
        try:
            sandbox_lock.claim(wait_s=0)
        except MountBusyError:  # it is awake
            return
        try:
            if home.exists():  # else it was removed since it was listed
                self._sweep_box(tenant, sandbox, home, swept, lives_elsewhere=lives_elsewhere)
        except (NodeError, OSError) as e:
            log.error("sandbox_not_swept", sandbox=sandbox, error=type(e).__name__)
            swept.stuck.append(sandbox)
        finally:
            sandbox_lock.release(for_good=not home.exists())

    def _boxes(self) -> Iterator[tuple[str, str, Path]]:
        for home in sorted((self._layout.root / "boxes").glob("*/*")):
            yield home.parent.name, home.name, home

    def _sweep_box(self, tenant: str, sandbox: str, home: Path, swept: Swept, *, lives_elsewhere: bool | None) -> None:
        group = Cgroup(self._layout.sandbox_cgroup(tenant, sandbox), memory_bytes=0, processes=0)
        group.thaw()
        group.remove()
        before = len(mountinfo.mounts_under(home))
        if sweep(home, deadline_s=_UNMOUNT_S):
            raise MountBusyError("A mount is in use.")
        swept.mounts += before
        if (home / "spool").exists():
            remove_tree(home / "spool")
            swept.spools += 1
        if self._is_out_of_date(home, lives_elsewhere=lives_elsewhere):
            self._layout.remove(home)
            swept.out_of_date += 1

    def _is_out_of_date(self, home: Path, *, lives_elsewhere: bool | None) -> bool:
        """Tells whether the sandbox has lived elsewhere for `OUT_OF_DATE_S`. Makes or removes the mark for that."""
        mark = home / _MARK
        if lives_elsewhere is None:
            return False
        if not lives_elsewhere:
            mark.unlink(missing_ok=True)
            return False
        if not mark.exists():
            mark.touch()
            log.warning("out_of_date_files", tenant=home.parent.name, sandbox=home.name, kept_s=OUT_OF_DATE_S)
        return time.time() - mark.stat().st_mtime >= OUT_OF_DATE_S

    def _lives_elsewhere(self, tenant: str, sandbox: str) -> bool | None:
        """Tells whether the bucket places the sandbox on another node; None if the bucket does not say."""
        if self._catalog is None:
            return None
        try:
            found = self._catalog.sandboxes.find_state(tenant, sandbox)
        except StorageError as e:
            log.warning("state_not_read", sandbox=sandbox, detail=str(e))
            return None
        return not location.may_be_here(found.state if found else None, NodeRef(self.identity()))

    def _sweep_shared(self, swept: Swept) -> None:
        if self._layout.lowers.exists():
            try:
                swept.lowers += len(Lowers(self._layout.lowers).release_unused())
            except (NodeError, OSError) as e:
                log.error("archives_not_unmounted", error=type(e).__name__)
        for doomed in self._layout.trash.glob("*"):
            try:
                if time.time() - doomed.stat().st_ctime > _BEING_DELETED_S:
                    remove_tree(doomed)
                    swept.trash += 1
            except FileNotFoundError:
                continue
            except (NodeError, OSError) as e:
                log.error("trash_left_behind", error=type(e).__name__)
        for work in (self._layout.adoptions, self._layout.flattenings):
            try:
                swept.works += remove_unless_in_use(work)
            except (NodeError, OSError) as e:
                log.error("work_left_behind", folder=work.name, error=type(e).__name__)
        if self._layout.cache.exists():
            try:
                self._cache.remove_leftovers()
            except (NodeError, OSError) as e:
                log.error("half_made_archives_left_behind", error=type(e).__name__)
            self._cache.evict()
