"""The residency of a sandbox in its actor: it wakes for the first call, and stays awake until it is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from actors.errors import HoldfastError, SupersededError
from actors.faults import unavailable_unless
from actors.logs import log
from actors.metrics import WAKES, Meter
from actors.sandbox.mending import Watch, disturbed
from actors.sandbox.node_resources import NodeResources
from actors.sandbox.quiescence import Quiescence
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.sleep_backups import SleepBackups
from actors.sandbox.teardown import Teardown
from actors.sandbox.tree_lock import TreeLock
from actors.sandbox.wake_steps import WakeSteps
from actors.state.document import StateRead
from actors.state.lifecycle import Life
from actors.state.ownership import Ownership


class Residency:
    """Wakes and closes one sandbox. Thread-safe: every lane wakes the sandbox before it works with it."""

    def __init__(
        self,
        sandbox: str,
        *,
        resources: NodeResources,
        tree_lock: TreeLock,
        quiescence: Quiescence,
        restored: RestoredDirectories,
        ownership: Ownership,
        wake_steps: WakeSteps,
        teardown: Teardown,
        sleep_backups: SleepBackups,
        look: Callable[[], None],
        meter: Meter,
    ) -> None:
        """`look` notes which files of a sandbox that has just woken are in no backup."""
        self._sandbox = sandbox
        self._resources = resources
        self._tree_lock = tree_lock
        self._quiescence = quiescence
        self._restored = restored
        self._ownership = ownership
        self._wake_steps = wake_steps
        self._teardown = teardown
        self._sleep_backups = sleep_backups
        self._look = look
        self._meter = meter
        self._waking = threading.Lock()
        self._watch = Watch(self._look_at_archives)

    @property
    def is_awake(self) -> bool:
        """True if all of the sandbox is mounted: it was woken, and has not been closed or destroyed since."""
        return self._restored.is_whole

    @property
    def is_empty(self) -> bool:
        """True if the sandbox was destroyed and not used since."""
        return self._ownership.life.state in (Life.DESTROYED, Life.ASLEEP_IN_BUCKET)

    def wake(self) -> None:
        """Wakes the sandbox: mounts or recovers its files, and cleans up after an earlier process that died.

        Does nothing if the sandbox is awake and its archives are undamaged.

        Raises:
            SandboxUnavailableError: it cannot wake now; nothing is lost.
        """
        if self._ownership.is_superseded:
            raise SupersededError
        if self.is_awake and not self._restored.is_disturbed():
            return
        with self.held():
            self._unmount_disturbed()
            if not self.is_awake:
                self._wake()

    def wake_to_change(self) -> None:
        """Wakes the sandbox for a call that changes its tree. Raises as `wake`."""
        self.wake()
        self._sleep_backups.note_change()

    def prepare(self, found: StateRead, *, wake: bool) -> None:
        """Prepares the sandbox for a call that is on its way, and wakes it if `wake` is true. Raises as `wake`.

        Does nothing if the sandbox was woken, closed or destroyed before: that call may be over by now. `found` is the
        state that the service has just found in the bucket (`Ownership.suppose`).
        """
        with self.held():
            if self._ownership.life.is_unwoken:
                self._ownership.suppose(found)
                if wake:
                    self._wake()

    def come_back(self) -> None:
        """Wakes the sandbox after a crash of its actor, if it existed. Raises as `wake`, and StorageError."""
        with self.held():
            is_new = self._ownership.life.is_unwoken
            if is_new and (self._restored.exists or self._ownership.is_known()):
                self._wake()

    def close(self) -> None:
        """Ends everything that runs and unmounts everything; files and layers stay. The next call wakes the sandbox.

        Raises NodeError.
        """
        with self._tree_lock.repairing():
            self._teardown.unmount()
            self._teardown.release()
            self._ownership.life.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the sandbox as it is within the block, awake or not, so that the caller can mount and unmount it."""
        with self._waking, self._tree_lock.repairing():
            yield

    def note_awake(self) -> None:
        """Notes that the sandbox is awake, once everything is mounted. Raises SupersededError."""
        if self.is_awake:
            self._ownership.life.move(Life.AWAKE)

    def note_replaced(self) -> None:
        """Completes a wake in which a restore has replaced what could not be brought back. Call it within `held`."""
        self.note_awake()
        self._sleep_backups.note_change()
        self._wake_steps.make_home()

    def watch_archives(self) -> None:
        """Looks from now on, every few seconds, for archives that change under their mounts."""
        self._watch.begin()

    def _wake(self) -> None:
        with unavailable_unless(
            self._sandbox, "taken up", outcome="not_executed", hint="Run `holdfast doctor` on the node."
        ):
            self._resources.claim()
            try:
                self._restored.read()
                origin = self._wake_steps.locate_and_mount()
            except BaseException:
                if not (self._restored.is_shown or self._restored.unmounted):  # else parts are mounted
                    self._teardown.release()
                raise
        self.note_awake()
        self._look()
        self.watch_archives()
        self._meter.add(WAKES, origin.value)
        if not origin.is_elsewhere:
            self._ownership.acquire_epoch_in_background()

    def _unmount_disturbed(self) -> None:
        """Unmounts everything if an archive under a mount has changed. The next `_wake` checks the archives.

        Raises SandboxUnavailableError.
        """
        if self.is_awake and self._restored.is_disturbed():
            log.error("archive_disturbed", sandbox=self._sandbox)
            with unavailable_unless(self._sandbox, "taken up", outcome="not_executed"):
                self._quiescence.stop(disturbed())
                self._restored.unmount_all()

    def _look_at_archives(self) -> bool:
        """Remounts the sandbox if an archive has changed, as a call would. Returns False once nothing is mounted."""
        if not (self.is_awake and self._restored.has_archives):
            return False
        if self._restored.is_disturbed():
            with self.held():
                was_awake = self.is_awake
                try:
                    self._unmount_disturbed()
                    if was_awake and not self.is_awake:
                        self._wake()
                except HoldfastError as e:  # the next call tries again
                    log.error("archive_not_replaced", sandbox=self._sandbox, error=e.code)
        return self.is_awake
