"""The mount drivers: four ways to lay a writable layer over an archive, with the exact commands for each.

    driver     archive                    overlay          needs                 limits
    kernel     squashfs on a loop device  overlay          loop devices
    mixed      squashfuse_ll              overlay          /dev/fuse             links, empty xattrs
    rootless   squashfuse_ll              overlay          /dev/fuse; works in   links, special links, directories,
                                                           a user namespace      signs, empty xattrs
    fuse       squashfuse_ll              fuse-overlayfs   /dev/fuse             directories, fifos, names,
                                                                                 empty xattrs

A `Limit` is a known difference of a driver from a plain directory. There must be no other: `proofs` checks that before
a driver is used. It refuses fuse-overlayfs 1.10, because deleted files come back there.

Overlays are mounted in the layer's folder, with relative paths, because mountinfo shows the options of a kernel overlay
to every process, also inside a sandbox.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

LOWER, UPPER, WORK, MERGED = "lower", "upper", "work", "merged"
IDMAPPED_LOWER, IDMAPPED_LAYER = "idmapped/lower", "idmapped/layer"

_FLAGS = "nosuid,nodev"


class Limit(StrEnum):
    """A known limit of a driver. The value is a sentence that describes it to users."""

    DIRECTORIES = "renaming a restored directory gives EXDEV (mv and shutil.move copy instead)"
    LINKS = "a restored hard link is a file of its own once it is changed, at once or after the next mount"
    SPECIAL_LINKS = "changing or removing a restored symbolic link or fifo that has several names gives EPERM"
    FIFOS = "changing a restored fifo gives EIO"
    NAMES = "names over 251 bytes, and names that begin with .wh., are refused"
    SIGNS = "restored user xattrs that begin with user.overlay. are refused"
    EMPTY_XATTRS = "restored xattrs without a value are refused"


class Driver(StrEnum):
    """The ways to mount a layer, best first."""

    KERNEL = "kernel"
    MIXED = "mixed"
    ROOTLESS = "rootless"
    FUSE = "fuse"

    @property
    def overlay_options(self) -> str:
        """The options that determine the upper's format. With another driver or other options it would be misread.

        redirect_dir allows directories to be renamed. index keeps hard links across a copy-up, and lets only one
        overlay use an upper, even on file systems without file handles, where it cannot keep links. xino keeps inode
        numbers constant. userxattr keeps the overlay's markers in xattrs that a user namespace may write, and excludes
        redirect_dir. Without writeback=0 a killed fuse-overlayfs loses whole files that were not yet synced.
        Source: kernel Documentation/filesystems/overlayfs.rst, ovl_report_in_use in fs/overlayfs/super.c; our
        benchmark.
        """
        return {
            Driver.KERNEL: "redirect_dir=on,index=on,xino=on",
            Driver.MIXED: "redirect_dir=on,index=on,xino=on",
            Driver.ROOTLESS: "userxattr,index=on,xino=on",
            Driver.FUSE: "writeback=0",
        }[self]

    @property
    def limits(self) -> frozenset[Limit]:
        """All known differences from a plain directory."""
        return {
            Driver.KERNEL: frozenset[Limit](),
            Driver.MIXED: frozenset({Limit.LINKS, Limit.EMPTY_XATTRS}),
            Driver.ROOTLESS: frozenset(
                {Limit.LINKS, Limit.SPECIAL_LINKS, Limit.DIRECTORIES, Limit.SIGNS, Limit.EMPTY_XATTRS}
            ),
            Driver.FUSE: frozenset({Limit.DIRECTORIES, Limit.FIFOS, Limit.NAMES, Limit.EMPTY_XATTRS}),
        }[self]

    @property
    def max_name_bytes(self) -> int:
        """Maximum length of a file name: fuse-overlayfs 1.10 aborts when it copies up a name of 252 bytes or more."""
        return 251 if self is Driver.FUSE else 255

    @property
    def stacks_archives(self) -> bool:
        """True if it can mount several archives over each other, for an incremental backup.

        fuse-overlayfs 1.10 shows a directory of several archives with the mode of an older one, and may abort.
        """
        return self is not Driver.FUSE

    def stands(self, name: bytes) -> bool:
        """Tells whether the driver can show this file name. To fuse-overlayfs `.wh.x` means that x was deleted."""
        return len(name) <= self.max_name_bytes and not (self is Driver.FUSE and name.startswith(b".wh."))

    @property
    def programs(self) -> dict[str, str]:
        """The programs that the driver needs, each with its Debian package."""
        squashfuse = {"setpriv": "util-linux", "squashfuse_ll": "squashfuse"}
        return {
            Driver.KERNEL: {"mount": "mount"},
            Driver.MIXED: {"mount": "mount", **squashfuse},
            Driver.ROOTLESS: {"mount": "mount", **squashfuse},
            Driver.FUSE: {"fuse-overlayfs": "fuse-overlayfs", **squashfuse},
        }[self]


Setting = Literal["auto", "none"] | Driver
"""An operator's choice: a driver, "auto" for the best one that is offered, or "none" for copies only."""


def setting_of(choice: str) -> Setting:
    """Parses an operator's choice. Raises ValueError for any other word."""
    return "auto" if choice == "auto" else "none" if choice == "none" else Driver(choice)


def kernel_squashfs(archive: Path, point: Path) -> list[str]:
    """The `mount` command for an archive. Its loop device is detached with the unmount."""
    return ["mount", "-t", "squashfs", "-o", f"loop,ro,{_FLAGS}", str(archive), str(point)]


def lower(number: int) -> str:
    """The name of the folder in a layer's folder that shows an archive. The oldest archive has number 0."""
    return f"{LOWER}{number or ''}"


def idmapped_lower(number: int) -> str:
    """The name of the folder that shows an idmapped clone of an archive."""
    return f"{IDMAPPED_LOWER}{number or ''}"


def _directories(archives: int, *, idmapped: bool = False) -> str:
    name, inside = (idmapped_lower, f"{IDMAPPED_LAYER}/") if idmapped else (lower, "")
    lowers = ":".join(name(number) for number in reversed(range(archives)))
    return f"lowerdir={lowers},upperdir={inside}{UPPER},workdir={inside}{WORK}"


def kernel_overlay(driver: Driver, archives: int = 1, *, idmapped: bool = False) -> list[str]:
    """The `mount` command for the overlay over so many archives, to be run in the layer's folder.

    `idmapped` means over idmapped clones.
    """
    options = f"{_FLAGS},{overlay_data(driver, archives, idmapped=idmapped)}"
    return ["mount", "-t", "overlay", "-o", options, "overlay", MERGED]


def overlay_data(driver: Driver, archives: int = 1, *, idmapped: bool = False) -> str:
    """The overlay's own options, as mount(2) takes them."""
    return f"{_directories(archives, idmapped=idmapped)},{driver.overlay_options}"


def fuse_squashfs(archive: Path, point: str = LOWER) -> list[str]:
    """The command of the daemon that serves an archive, in the foreground; to be run in the layer's folder.

    It is the low-level variant, because the high-level squashfuse gives hard links different inode numbers.
    """
    options = f"ro,{_FLAGS},allow_other,default_permissions"
    return [*_DIES_WITH_PARENT, "squashfuse_ll", "-f", "-o", options, str(archive), point]


def fuse_overlay(archives: int = 1) -> list[str]:
    """The command of the daemon that serves the overlay, in the foreground; to be run in the layer's folder."""
    options = f"{_FLAGS},{_directories(archives)},{Driver.FUSE.overlay_options}"
    return [*_DIES_WITH_PARENT, "fuse-overlayfs", "-f", "-o", options, MERGED]


_DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
