"""Wraps a sandbox's command in `env`, which resets signals and writes a marker, and splits its stderr at the marker.

Ray's workers block signals, and the process that started Ray may have ignored others; every child process inherits
both. A command starts as programs expect: no signal is blocked or ignored.

The marker is a line on standard error that only the first `env` writes. The bytes before it come from the box. If the
marker never comes, they are most often the reason why the box could not be built. The command writes the bytes after.

Source: env(1) of coreutils 9.1 (`--default-signal` also unblocks; `--list-signal-handling` writes the line).
"""

from __future__ import annotations

from collections.abc import Sequence

_ENV = "/usr/bin/env"
"""An absolute path, like `_NICE`: the command's own PATH is set by then, and may be empty."""
_NICE = "/usr/bin/nice"
_SIGN = b"WINCH      (28): IGNORE\n"
_SIGNED = [_ENV, "--default-signal", "--ignore-signal=WINCH", "--list-signal-handling"]
_DEFAULT_SIGNALS = [_ENV, "--default-signal", "--"]
_AT_MOST_BYTES = 64 * 1024
"""Limit for the bytes held back before the marker. A box writes less; a library that the
command's environment preloads into `env` may write more."""


def opened(argv: Sequence[str]) -> list[str]:
    """The argv that writes the marker, resets the signals and then executes `argv`.

    Its exit status is 127 or 126, as a shell's, if `argv` cannot be executed. `env` would take a name with "=" for a
    variable, so `nice` with an adjustment of 0 executes such a name.
    """
    named = [_NICE, "-n", "0", "--", *argv] if "=" in argv[0] else [*argv]
    return [*_SIGNED, *_DEFAULT_SIGNALS, *named]


class Opening:
    """The standard error of one command, split at the marker."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self.is_over = False
        """True once the marker has come, or is no longer expected."""

    def passed(self, data: bytes) -> bytes:
        """Returns the part of the next bytes that the command wrote."""
        if self.is_over:
            return data
        self._kept += data
        before, sign, after = self._kept.partition(_SIGN)
        if sign:
            self._kept, self.is_over = before, True
            return bytes(after)
        if len(self._kept) > _AT_MOST_BYTES:
            return self.rest()
        return b""

    def rest(self) -> bytes:
        """Returns all bytes held back, for a command that ended, or wrote much, before the marker came."""
        if self.is_over:
            return b""
        rest, self._kept, self.is_over = bytes(self._kept), bytearray(), True
        return rest
