"""The mounts of one layer, the daemons that serve them, and what happens when one of those dies.

    MOUNTING -> SERVING -> CLOSING          unmounted on purpose; the ends of its daemons mean nothing
                       \\-> LOST            a daemon died: the others are killed at once, and `on_lost` is called

The other daemons are killed because a fuse-overlayfs whose archive daemon is dead takes restored files for missing, and
lets new, empty files hide them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path

from actors.logs import log
from actors.node import drivers, idmapped, mountinfo, mounting
from actors.node.daemons import Daemon, Daemons
from actors.node.drivers import MERGED, WORK, Driver
from actors.node.errors import MountBusyError, MountError, NoRoomToMountError, ToolError
from actors.node.lowers import Hold, Lowers
from actors.node.removal import remove_tree

READY_S = 10.0
_KILLED_S = 5.0


class _State(Enum):
    MOUNTING = auto()
    SERVING = auto()
    CLOSING = auto()
    LOST = auto()


class Stack:
    """Mounts and unmounts a layer's folder. Not thread-safe, except for the deaths of daemons."""

    def __init__(
        self,
        folder: Path,
        *,
        driver: Driver,
        lowers: Lowers,
        daemons: Daemons,
        on_lost: Callable[[], None],
        mapping: Callable[[], int | None],
    ) -> None:
        """`mapping` returns a descriptor of the user namespace for idmapped mounts; None for mounts without."""
        self._driver = driver
        self._lowers = lowers
        self._daemons = daemons
        self._on_lost = on_lost
        self._mapping = mapping
        self._folder = folder
        self._merged = folder / MERGED
        self._serving: list[tuple[Path, Daemon]] = []
        self._lower_points: list[Path] = []
        self._holds: list[Hold] = []
        self._state = _State.MOUNTING
        self._lock = threading.Lock()

    def mount_lower(self, archive: Path, sha256: str) -> None:
        """Makes an archive readable, the oldest one first: at `lower`, then `lower1`, and so on.

        Raises:
            MountError: it cannot be mounted.
        """
        point = self._folder / drivers.lower(len(self._lower_points))
        self._lower_points.append(point)
        if self._driver is Driver.KERNEL:
            hold = self._lowers.hold(archive, sha256)
            self._holds.append(hold)
            point.unlink(missing_ok=True)
            point.symlink_to(hold.path)
        else:
            point.mkdir(exist_ok=True)
            self._start("squashfuse_ll", drivers.fuse_squashfs(archive, point.name), point)

    def mount_merged(self) -> None:
        """Mounts the overlay over the archives; waits for an earlier mount of the same upper to end.

        Raises:
            MountBusyError: another mount, perhaps in another mount namespace, uses the upper.
            MountError: it cannot be mounted.
        """
        if self._driver is Driver.FUSE:
            self._start("fuse-overlayfs", drivers.fuse_overlay(len(self._lower_points)), self._merged)
            return
        try:
            self._mount_overlay(READY_S)
        except MountBusyError:
            raise
        except MountError:
            if self._driver is not Driver.ROOTLESS:
                raise
            self._drop_index()
            self._mount_overlay(READY_S)

    def _drop_index(self) -> None:
        """Deletes the index that a rootless overlay kept of an earlier mount, which is stale anyway. Raises MountError.

        A fifo with several names that was renamed is in the index without the overlay's xattr, and the kernel refuses
        to mount such an index: ENODATA.
        """
        try:
            remove_tree(self._folder / WORK / "index")
        except ToolError as e:
            raise MountError(e.message) from e

    def _mount_overlay(self, deadline_s: float) -> None:
        namespace = self._mapping()
        if namespace is None:
            self._mount_over(deadline_s, idmapped_clones=False)
            return
        with idmapped.layers(self._folder, namespace, archives=len(self._lower_points)):
            self._mount_over(deadline_s, idmapped_clones=True)

    def _mount_over(self, deadline_s: float, *, idmapped_clones: bool) -> None:
        """Mounts the overlay: in a child that can be killed if daemons serve the archives, which may hang."""
        archives = len(self._lower_points)
        if self._driver is Driver.KERNEL:
            data = drivers.overlay_data(self._driver, archives, idmapped=idmapped_clones)
            mounting.mount_overlay(data, MERGED, cwd=self._folder, deadline_s=deadline_s)
        else:
            argv = drivers.kernel_overlay(self._driver, archives, idmapped=idmapped_clones)
            mounting.mount(argv, cwd=self._folder, deadline_s=deadline_s)

    def serve(self) -> None:
        """Proves that the merged directory answers; from then on a daemon's death is a loss.

        Raises:
            MountError: it does not answer, or a daemon is dead already.
        """
        if self._driver is Driver.KERNEL:
            wrong = mountinfo.look(self._merged)
        else:
            wrong = mountinfo.probe(self._merged, timeout_s=READY_S)
        with self._lock:
            dead = self._first_dead()
            if wrong is None and dead is None:
                self._state = _State.SERVING
                return
        raise MountError(f"The layer does not work: {wrong or f'{dead} died'}.")

    @property
    def is_lost(self) -> bool:
        """True if a daemon has died under the layer, even if its death was not handled yet."""
        with self._lock:
            if self._state is _State.SERVING:
                return any(daemon.is_dead for _, daemon in self._serving)
            return self._state is _State.LOST

    def unmount(self, *, deadline_s: float) -> None:
        """Unmounts the layer, and returns only when nothing can write to the upper any more. May be repeated.

        Raises:
            MountBusyError: the layer was in use until the deadline. If a process of this mount namespace used it,
                everything is as it was; if another namespace still shows the mount, ours is gone.
        """
        deadline = time.monotonic() + deadline_s
        with self._lock:
            before, self._state = self._state, _State.CLOSING
        try:
            mounting.unmount(self._merged, deadline_s=deadline_s)
        except MountError:
            self._resume(before)
            raise
        for point, daemon in reversed(self._serving):
            mounting.unmount(point, deadline_s=_left(deadline))
            if not daemon.exited.wait(_left(deadline)):
                raise MountBusyError(f"Another mount namespace still uses the mount of {daemon.name}.")
        if self._holds:
            self._prove_unused(deadline)
            self._release_holds()

    def abandon(self) -> None:
        """Ends a stack that nobody has used: kills its daemons, and waits for nothing but the kernel.

        Raises:
            MountError: something cannot be unmounted.
        """
        with self._lock:
            self._state = _State.CLOSING
        self._kill_daemons()
        mounting.unmount(self._merged, deadline_s=_KILLED_S)
        if self._driver is Driver.KERNEL:
            self._release_holds()
        else:
            for point in self._lower_points:
                mounting.unmount(point, deadline_s=_KILLED_S)

    def _release_holds(self) -> None:
        while self._holds:
            self._lowers.release(self._holds.pop())

    def _start(self, name: str, argv: list[str], point: Path) -> None:
        daemon = self._daemons.start(argv, name=name, cwd=self._folder, on_exit=self._on_exit)
        self._serving.append((point, daemon))
        daemon.wait_until_serving(point, timeout_s=READY_S)

    def _prove_unused(self, deadline: float) -> None:
        """Waits until no mount namespace has the overlay: index=on lets only one overlay at a time use an upper.

        A full disk does not spoil this proof: the kernel claims the upper before it makes the work folder. Source:
        Linux, ovl_fill_super.
        """
        with contextlib.suppress(NoRoomToMountError):
            self._mount_overlay(_left(deadline))
        mounting.unmount(self._merged, deadline_s=_KILLED_S)

    def _resume(self, before: _State) -> None:
        with self._lock:
            self._state = before
            dead = self._first_dead()
        if dead is not None:
            self._lose(dead)

    def _on_exit(self, daemon: Daemon) -> None:
        self._lose(daemon.name)

    def _lose(self, dead: str) -> None:
        with self._lock:
            if self._state is not _State.SERVING:
                return
            self._state = _State.LOST
        for _, daemon in self._serving:
            daemon.kill()
        threading.Thread(target=self._after_loss, name=f"lost-{self._folder.name}", daemon=True).start()
        log.error("a FUSE daemon died under a layer", daemon=dead, layer=self._folder.name)

    def _after_loss(self) -> None:
        """Unmounts what is not in use, and calls `on_lost`: the owner ends its processes, then revives the layer."""
        try:
            self._kill_daemons()
            for point in (self._merged, *self._lower_points):
                with contextlib.suppress(MountBusyError):
                    mounting.unmount(point, deadline_s=0)
            self._on_lost()
        except Exception as e:
            log.error("the loss of a layer could not be handled", layer=self._folder.name, error=type(e).__name__)

    def _kill_daemons(self) -> None:
        for _, daemon in self._serving:
            daemon.kill()
        for _, daemon in self._serving:
            daemon.exited.wait(_KILLED_S)

    def _first_dead(self) -> str | None:
        return next((daemon.name for _, daemon in self._serving if daemon.exited.is_set()), None)


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
