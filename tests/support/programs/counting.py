"""Writes a growing number to two files without end, the first one first. Runs in a sandbox."""

from __future__ import annotations

import os


def at(name: str) -> int:
    return os.open(name, os.O_CREAT | os.O_WRONLY, 0o644)


first, second = at("a-first"), at("z-second")
n = 0
while True:
    n += 1
    line = b"%020d" % n
    os.pwrite(first, line, 0)
    os.pwrite(second, line, 0)
    if n == 1:
        print("counting", flush=True)
