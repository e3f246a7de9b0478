"""The resources that a sandbox holds on its node: its lock, its folder, its control group and its user namespace."""

from __future__ import annotations

import contextlib
import os
import threading

from actors.node import actor_group, holders
from actors.node.archive_cache import ArchiveCache
from actors.node.cgroup import Cgroup, announce_entry
from actors.node.errors import MountBusyError, is_full
from actors.node.mounting import sweep
from actors.node.removal import remove_tree
from actors.node.user_namespace import UserNamespace
from actors.node_layout import NodeLayout
from actors.sandbox.sandbox_lock import SandboxLock

_UNMOUNT_S = 10.0


class NodeResources:
    """The node's resources of one sandbox, from `claim` to `release`."""

    def __init__(
        self,
        layout: NodeLayout,
        tenant: str,
        sandbox: str,
        *,
        cgroup: Cgroup,
        user_namespace: UserNamespace,
        cache: ArchiveCache,
    ) -> None:
        """`cache` is the node's, in which a killed actor may have left a part of an archive."""
        self._layout = layout
        self._folder = layout.box(tenant, sandbox)
        self._lock = SandboxLock(layout.sandbox_lock(tenant, sandbox))
        self._cgroup = cgroup
        self._user_namespace = user_namespace
        self._cache = cache
        self._has_removed_leftovers = False

    def claim(self) -> None:
        """Takes the sandbox lock, and begins to make the user namespace. Raises MountBusyError, OSError."""
        self._lock.claim()
        self._user_namespace.start()

    def claim_to_destroy(self) -> None:
        """Takes the sandbox lock. If the disk has no room for it and nothing of the sandbox is here, goes on without
        the lock: no other process can begin anything here, either. Raises MountBusyError, OSError."""
        try:
            self._lock.claim()
        except OSError as e:
            if not is_full(e) or self._folder.exists():
                raise

    def prepare(self) -> None:
        """Makes the folder and the control group, and ends orphans of dead actors. Raises NodeError, OSError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._cgroup.prepare()
        self._cgroup.thaw()
        actor_group.end_orphans(self._layout.cgroup)  # an orphan may be about to enter the sandbox's group

    def expect_command(self) -> None:
        """Prepares the kernel for a command that is on its way (`announce_entry`). Returns at once."""
        threading.Thread(target=announce_entry, name="announce", daemon=True).start()

    def remove_leftovers(self) -> None:
        """Removes the unfinished work of an earlier actor: its spool, and parts of archives in the cache.

        Only once: a sandbox may be taken up anew, after damage, while an operation of this actor works in the spool.
        """
        if not self._has_removed_leftovers:
            remove_tree(self._folder / "spool")
            self._cache.remove_leftovers()
            self._has_removed_leftovers = True

    def end_orphans(self) -> bool:
        """Ends the processes of dead actors that hold mounts of this node. Returns False if there are none."""
        return bool(holders.end_orphans(self._layout.mounting))

    def sweep(self) -> None:
        """Unmounts what is still mounted in the folder. Raises MountBusyError if a mount is in use."""
        if sweep(self._folder, deadline_s=_UNMOUNT_S):
            raise MountBusyError("A mount of the sandbox is still in use.")

    def remove_control_group(self) -> None:
        """Removes the control group, in which nothing runs any more. Raises NodeError."""
        self._cgroup.remove()

    def remove_folder(self) -> bool:
        """Moves the folder away in one step, then deletes it. So a crash leaves no half of a sandbox.

        Returns False if there is none. Raises NodeError, OSError.
        """
        if not self._folder.exists():
            return False
        self._layout.remove(self._folder)
        return True

    def release(self, *, for_good: bool = False) -> None:
        """Closes the user namespace and releases the sandbox lock. `for_good` means that the folder is removed."""
        self._user_namespace.close()
        if not for_good:
            with contextlib.suppress(OSError):
                os.utime(self._folder)  # the time of the last use: the order in which a drain moves sleeping sandboxes
        self._lock.release(for_good=for_good)
