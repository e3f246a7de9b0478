"""Random trees with inodes of every kind, each with any number of hard links."""

from __future__ import annotations

import os
import random
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def socket_at(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))


KINDS: Mapping[str, Callable[[Path], object]] = {
    "file": lambda place: place.write_bytes(b"data"),
    "symlink": lambda place: place.symlink_to("target"),
    "fifo": os.mkfifo,
    "socket": socket_at,
    "device": lambda place: os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    "block device": lambda place: os.mknod(place, 0o600 | stat.S_IFBLK, os.makedev(7, 0)),
    "whiteout": lambda place: os.mknod(place, 0o600 | stat.S_IFCHR, 0),
}
LEFT_OUT = {"socket", "device", "block device", "whiteout"}
FUTURE_S = 4_000_000_000


def random_tree(root: Path, rng: random.Random, *, outside: Path, kinds: Sequence[str] = tuple(KINDS)) -> None:
    """Makes inodes of these kinds with random times, and random hard links within the tree and to `outside`."""
    folders = [root]
    for number in range(rng.randint(0, 6)):
        folders.append(rng.choice(folders) / f"d{number}")
        folders[-1].mkdir()
    for number in range(rng.randint(1, 15)):
        place = rng.choice(folders) / f"{number}"
        KINDS[rng.choice(kinds)](place)
        for more in range(rng.choice([0, 0, 1, 3])):
            folder = rng.choice([*folders, outside])
            os.link(place, folder / f"{number}-{more}{rng.choice(['', '.x'])}", follow_symlinks=False)
        os.utime(place, ns=(rng.randrange(2**62), rng.randrange(2**62)), follow_symlinks=False)
        os.chown(place, root.stat().st_uid, root.stat().st_gid, follow_symlinks=False)
