"""The signals that a process was started with, as the kernel reports them."""

from __future__ import annotations

from collections.abc import Mapping

_OF_LIBC = 0b11 << 31
"""Signals 32 and 33. A program started with posix_spawn(3), as GNU make does, ignores them; only libc can change that.
Source: glibc 2.36, sysdeps/unix/sysv/linux/spawni.c."""


def disturbed_signals(status: Mapping[str, str]) -> tuple[int, int]:
    """The blocked and the ignored signals of a process, as bits, from the fields of its /proc/<pid>/status."""
    return int(status["SigBlk"], 16), int(status["SigIgn"], 16) & ~_OF_LIBC
