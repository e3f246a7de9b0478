"""The three ways to lay a writable layer over an archive, and the exact words that ask for them.

    driver   archive                    overlay          what does not work
    kernel   squashfs on a loop device  overlay
    mixed    squashfuse_ll              overlay          a hard link that was changed is a file of its own after the
                                                         next mount (FUSE gives the index no file handles)
    fuse     squashfuse_ll              fuse-overlayfs   renaming a restored directory (EXDEV; mv and shutil.move copy
                                                         instead), changing a restored fifo (EIO), names over 251 bytes
                                                         or that begin with .wh.

All of it is run in the layer's folder and named relative to it, because a kernel overlay shows its options to
whoever reads mountinfo, inside a sandbox too.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

LOWER, UPPER, WORK, MERGED = "lower", "upper", "work", "merged"

_FLAGS = "nosuid,nodev"
_DIRECTORIES = f"lowerdir={LOWER},upperdir={UPPER},workdir={WORK}"


class Driver(StrEnum):
    """How layers are mounted, best first."""

    KERNEL = "kernel"
    MIXED = "mixed"
    FUSE = "fuse"

    @property
    def overlay_options(self) -> str:
        """What shapes the upper directory: another driver or other options would misread it.

        redirect_dir makes directories renameable; index keeps hard links across a copy-up and lets only one
        overlay use an upper; xino keeps inode numbers constant. Without writeback=0 a killed fuse-overlayfs loses
        whole files that were not yet synced. Source: kernel Documentation/filesystems/overlayfs.rst; our benchmark.
        """
        return "writeback=0" if self is Driver.FUSE else "redirect_dir=on,index=on,xino=on"

    @property
    def max_name_bytes(self) -> int:
        """The longest file name that is safe: fuse-overlayfs 1.10 aborts when it copies up 252 bytes or more."""
        return 251 if self is Driver.FUSE else 255

    def stands(self, name: bytes) -> bool:
        """Whether an archive may hold this file name: fuse-overlayfs takes `.wh.x` for the sign that x was deleted."""
        return len(name) <= self.max_name_bytes and not (self is Driver.FUSE and name.startswith(b".wh."))

    @property
    def programs(self) -> dict[str, str]:
        """The programs it runs, with the Debian package of each."""
        squashfuse = {"setpriv": "util-linux", "squashfuse_ll": "squashfuse"}
        return {
            Driver.KERNEL: {"mount": "mount"},
            Driver.MIXED: {"mount": "mount", **squashfuse},
            Driver.FUSE: {"fuse-overlayfs": "fuse-overlayfs", **squashfuse},
        }[self]


def kernel_squashfs(archive: Path, point: Path) -> list[str]:
    """`mount` that puts an archive on a loop device, which goes away with the mount."""
    return ["mount", "-t", "squashfs", "-o", f"loop,ro,{_FLAGS}", str(archive), str(point)]


def kernel_overlay() -> list[str]:
    """`mount` of the overlay, to be run in the layer's folder."""
    options = f"{_FLAGS},{_DIRECTORIES},{Driver.KERNEL.overlay_options}"
    return ["mount", "-t", "overlay", "-o", options, "overlay", MERGED]


def fuse_squashfs(archive: Path) -> list[str]:
    """The daemon that serves an archive, in the foreground, to be run in the layer's folder.

    It is the low-level variant because the high-level squashfuse gives hard links different inode numbers.
    """
    options = f"ro,{_FLAGS},allow_other,default_permissions"
    return [*_DIES_WITH_PARENT, "squashfuse_ll", "-f", "-o", options, str(archive), LOWER]


def fuse_overlay() -> list[str]:
    """The daemon that serves the overlay, in the foreground, to be run in the layer's folder."""
    options = f"{_FLAGS},{_DIRECTORIES},{Driver.FUSE.overlay_options}"
    return [*_DIES_WITH_PARENT, "fuse-overlayfs", "-f", "-o", options, MERGED]


_DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
