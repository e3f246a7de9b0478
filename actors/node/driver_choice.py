"""Choice of this node's mount driver among those that can mount, and whose layers behave like a plain directory.

A check of modules, capabilities and device nodes could never be complete: containers, seccomp filters and the file
system of the data folder matter, too. So each driver is tried: `proofs` mounts an archive with it, and runs the
operations that some overlay is known to get wrong.

Verdicts are kept on the disk, so that a sandbox starts quickly. A verdict is valid until something changes on which it
may depend: the boot, the container, the kernel, the installed packages, the driver's options, the trials. A verdict
that a driver cannot mount is valid for five minutes, because the cause may have been a lack of memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from fasteners import InterProcessLock
from pydantic import BaseModel, ConfigDict, ValidationError

from actors.node import mounting, process, proofs, trials
from actors.node.drivers import MERGED, Driver, Setting
from actors.node.errors import DriverUnavailableError, NodeError, ToolError, full_disk_in
from actors.node.removal import remove_tree
from actors.node.work_folder import made_anew, unless_in_use

_NEEDS = {
    Driver.KERNEL: "It needs CAP_SYS_ADMIN, loop devices, the squashfs and overlay modules, and ext4 or xfs under it.",
    Driver.MIXED: "It needs CAP_SYS_ADMIN outside of a user namespace, /dev/fuse, the overlay module, and ext4 or xfs"
    " under it.",
    Driver.ROOTLESS: "It needs CAP_SYS_ADMIN, /dev/fuse, the overlay module, Linux 5.11, and ext4 or xfs under it.",
    Driver.FUSE: "It needs CAP_SYS_ADMIN and /dev/fuse.",
}
_SHA256 = "0" * 64
_OBSTACLE_S = 300.0
_LOCK_TIMEOUT_S = 120.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STARTED = 19
"""Index of a process's start time among the fields after its name. Source: proc_pid_stat(5), field 22."""
_PACKAGES = Path("/var/lib/dpkg/status")
_DEVICES = (Path("/dev/fuse"), Path("/dev/loop-control"))


class Verdict(BaseModel):
    """The result of trying a driver: the obstacle to mounting, in a sentence, or a line for each failed trial."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    obstacle: str | None = None
    failed: tuple[str, ...] = ()

    @property
    def reason(self) -> str | None:
        """The reason why the driver is not offered; None if it is."""
        if self.failed:
            names = ", ".join(line.partition(":")[0] for line in self.failed)
            return f"It mounts, but files would be lost or come back: it failed the trials {names}."
        return self.obstacle


def available(folder: Path) -> dict[Driver, Verdict]:
    """Tries every driver for layers under `folder` anew, and ignores kept verdicts."""
    return {driver: prove(driver, folder) for driver in Driver}


def choose(setting: Setting, folder: Path) -> Driver | None:
    """Returns the driver for layers under `folder`: the configured one, or the best that is offered.

    Returns:
        None if backups can only be restored as copies: no driver is offered here, or `none` is configured.

    Raises:
        DriverUnavailableError: the configured driver is not offered here.
    """
    if setting == "none":
        return None
    if setting == "auto":
        return next((driver for driver in Driver if verdict(driver, folder).reason is None), None)
    found = verdict(setting, folder)
    if found.reason is None:
        return setting
    raise DriverUnavailableError(
        f"The mount driver {setting}, which is set, is not offered on this node. {found.reason}", hint=advice(setting)
    )


def advice(driver: Driver) -> str:
    """Advice for an operator whose configured driver is not offered."""
    others = ", ".join(other for other in Driver if other is not driver)
    return (
        f"Set HOLDFAST_DRIVER to auto (it takes the best of {others} that works here), or to none (restores are"
        " copies); `holdfast doctor` tries them all."
    )


def verdict(driver: Driver, folder: Path) -> Verdict:
    """Returns the kept verdict on a driver for layers under `folder`, or tries the driver if there is none."""
    file = folder / f"{driver}-{_circumstances(driver, folder)}.json"
    found = _read(file)
    if found is None:
        with _locked(folder):
            found = _read(file) or prove(driver, folder)  # another process may have tried it meanwhile
    return found


def prove(driver: Driver, folder: Path) -> Verdict:
    """Tries a driver under `folder`, and keeps the verdict there."""
    found = _try(driver, folder)
    file = folder / f"{driver}-{_circumstances(driver, folder)}.json"
    with contextlib.suppress(OSError, ToolError):  # if it cannot be written, the next process tries the driver again
        for earlier in folder.glob(f"{driver}-*.json"):
            remove_tree(earlier)
        temporary = folder / f".{file.name}-{os.getpid()}"
        temporary.write_text(found.model_dump_json())
        temporary.rename(file)
    return found


def _try(driver: Driver, folder: Path) -> Verdict:
    path = process.ENVIRONMENT["PATH"]
    for program, package in {**driver.programs, "mksquashfs": "squashfs-tools"}.items():
        if shutil.which(program, path=path) is None:
            return Verdict(obstacle=f"{program} is missing: install the package {package}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_in(folder) as scratch:
            return Verdict(failed=tuple(proofs.failures(driver, scratch, _SHA256)))
    except (NodeError, OSError) as e:
        full = full_disk_in(str(e))
        if full is not None:  # not the driver's fault
            return Verdict(obstacle=f"{full} under the data folder.")
        return Verdict(obstacle=f"{_short(str(e))} {_NEEDS[driver]}{_if_on_an_overlay(folder)}")


@contextlib.contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """A new folder for one trial, deleted afterwards. What is still mounted in it stays.

    While the trial runs, `remove_leftovers` leaves it alone. Raises OSError.
    """
    with made_anew(folder / f".driver-{uuid.uuid4().hex}") as scratch:
        try:
            yield scratch
        finally:
            with contextlib.suppress(ToolError):  # the trial's own error is what counts
                remove_tree(scratch)


def remove_leftovers(folder: Path) -> list[Path]:
    """Unmounts and deletes the trials under `folder` whose processes were killed. Trials that run now go on.

    Returns:
        The mount points that could not be unmounted.
    """
    left: list[Path] = []
    for scratch in [path for path in folder.glob(".*") if path.is_dir()]:
        with unless_in_use(scratch) as is_unused:
            if is_unused:
                left += mounting.sweep(scratch)
                with contextlib.suppress(ToolError):  # the next call tries again
                    remove_tree(scratch)
    return left


def _short(complaint: str) -> str:
    """The first line of a tool's error message, without the trial's own paths."""
    own = rf"(mount: )?\S*({MERGED}|{_SHA256}): |\S*/\.driver-[^/\s]+/"
    return re.sub(own, "", complaint).split("\\n")[0].rstrip(".") + "."


def _if_on_an_overlay(folder: Path) -> str:
    """A sentence to add if the data folder lies on an overlay, as in a container without a volume; else empty."""
    with contextlib.suppress(NodeError):
        kind = process.check(["stat", "-f", "-c", "%T", str(folder)]).decode().strip()
        if kind in ("overlayfs", "fuseblk", "fuse"):
            return (
                f" The data folder lies on {kind}, which cannot be an overlay's upper: give the container a volume"
                " for it that is not an overlay (a hostPath, a persistent volume, docker run -v)."
            )
    return ""


def _read(file: Path) -> Verdict | None:
    try:
        found = Verdict.model_validate_json(file.read_bytes())
        if found.obstacle is not None and time.time() - file.stat().st_mtime > _OBSTACLE_S:
            return None
        return found
    except (OSError, ValidationError):
        return None


def _circumstances(driver: Driver, folder: Path) -> str:
    """A digest of everything on which a verdict may depend and that can be read quickly."""
    own = Path("/proc/self/status").read_text()
    facts = [
        _BOOT_ID.read_text(),
        os.uname().release,
        Path("/proc/1/stat").read_text().rpartition(")")[2].split()[_STARTED],
        os.readlink("/proc/self/ns/user"),
        *re.findall(r"^(?:CapEff|CapBnd|NoNewPrivs|Seccomp):.*$", own, re.MULTILINE),
        driver.overlay_options,
        *(_identity(device) for device in _DEVICES),
        *(_identity(Path(name)) for name in (trials.__file__, proofs.__file__)),
        *(_identity(Path(shutil.which(name, path=process.ENVIRONMENT["PATH"]) or name)) for name in driver.programs),
        _identity(_PACKAGES),
        _place(folder),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def _place(folder: Path) -> str:
    """Device and inode of the folder, so that a verdict copied with it to another file system is not used there."""
    found = folder.stat() if folder.exists() else None
    return f"{found.st_dev} {found.st_ino}" if found else ""


def _identity(path: Path) -> str:
    """The file's mode, device number, size and mtime: they change with a file's content, or a device's kind."""
    try:
        found = os.stat(path)
    except OSError:
        return "missing"
    return f"{found.st_mode:o} {found.st_rdev} {found.st_size} {found.st_mtime_ns if not found.st_rdev else ''}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Single flight: lets one process of the node try a driver at a time. The others then read its verdict."""
    lock = None
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        lock = InterProcessLock(folder / ".lock")
        if not lock.acquire(timeout=_LOCK_TIMEOUT_S):
            lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
