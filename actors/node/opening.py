"""The last steps before a command of a sandbox: its signals are reset, and a sign tells that its box is built.

Ray's workers block signals, and whoever started Ray may have had others ignored; both are inherited by every process.
A command gets the mask and the dispositions that programs expect: nothing blocked, everything default.

The sign is a line on standard error, which nothing but the first `env` writes. Before it comes what the box itself has
to say, most often why it could not be built; after it what the command writes.

Source: env(1) of coreutils 9.1 (`--default-signal` also unblocks; `--list-signal-handling` writes the line).
"""

from __future__ import annotations

from collections.abc import Sequence

_ENV = "/usr/bin/env"
"""Absolute, as `_NICE` is: the command's PATH, which may be empty, is set by then."""
_NICE = "/usr/bin/nice"
_SIGN = b"WINCH      (28): IGNORE\n"
_SIGNED = [_ENV, "--default-signal", "--ignore-signal=WINCH", "--list-signal-handling"]
_DEFAULT_SIGNALS = [_ENV, "--default-signal", "--"]
_AT_MOST_BYTES = 64 * 1024
"""Kept back before the sign. A box says less; a library of the caller's that is loaded into `env` may say more."""


def opened(argv: Sequence[str]) -> list[str]:
    """The argv that gives the sign, resets the signals and becomes `argv`.

    It ends with 127 and 126, as a shell does, if `argv` cannot be executed. A name with "=" would be a variable to
    `env`; `nice` without an adjustment takes any name.
    """
    named = [_NICE, "-n", "0", "--", *argv] if "=" in argv[0] else [*argv]
    return [*_SIGNED, *_DEFAULT_SIGNALS, *named]


class Opening:
    """The standard error of one command, divided at the sign."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self.is_over = False
        """Whether the sign has come, or is not waited for any more."""

    def passed(self, data: bytes) -> bytes:
        """The part of the next bytes that the command wrote."""
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
        """All that was kept back, of a command that ended (or wrote much) before it gave the sign."""
        if self.is_over:
            return b""
        rest, self._kept, self.is_over = bytes(self._kept), bytearray(), True
        return rest
