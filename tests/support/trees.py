"""A tree with the cases that backup tools get wrong, and a fingerprint for comparing trees."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

# This module also runs alone, in a sandbox. `tests/unit/node/test_own_users.py` compares these with the product's.
DEFAULT_UID = 61_184
OWNERS = range(61_184, 65_520)

MINUTES_OF_READING = 60 * 2**30
"""Size of a hole that takes no disk space, but takes mksquashfs minutes, because it reads every zero."""
_LONG_AGO_S = 1_000_000_000
_DEPTH = 150


@dataclass(frozen=True, slots=True)
class Entry:
    """The compared properties of one name. `links` are all names of the same file; times are in whole seconds.

    An awake sandbox's own user counts as the user of all sandboxes.
    """

    kind: int
    mode: int
    uid: int
    gid: int
    mtime_s: int
    size: int | None
    sha256: str | None
    target: bytes | None
    links: tuple[bytes, ...]
    xattrs: tuple[tuple[str, bytes], ...]


def make_interesting_tree(path: Path, uid: int, *, max_name_bytes: int = 255) -> None:
    """Fills the new directory `path`. Everything in it belongs to user and group `uid`."""
    path.mkdir()
    root = os.fsencode(path)
    for number, name in enumerate(_names(max_name_bytes)):
        _write(os.path.join(root, name), b"content of number %d" % number)
    for name in (b"empty dir", b"-dash dir", b"dir\nwith newline", b"forbidden dir"):
        os.mkdir(os.path.join(root, name))
    _write(os.path.join(root, b"forbidden dir/inside"), b"reachable for root only")
    _write(os.path.join(root, b"empty"), b"")
    _write(os.path.join(root, b"large"), os.urandom(700_000))
    _write(os.path.join(root, b"zeros"), bytes(300_000))
    _write(os.path.join(root, b"-dash dir/first link"), b"one file, three names")
    for name in (b"second link", b"dir\nwith newline/third link"):
        os.link(os.path.join(root, b"-dash dir/first link"), os.path.join(root, name))
    os.symlink(b"large", os.path.join(root, b"link"))
    os.symlink(b"/nowhere/at all\xff", os.path.join(root, b"dangling link"))
    os.symlink(b"..", os.path.join(root, b"link out"))
    os.mkfifo(os.path.join(root, b"fifo"))
    with open(os.path.join(root, b"sparse"), "wb") as file:
        file.truncate(3_000_000)
        file.seek(2_000_000)
        file.write(b"an island")
    os.makedirs(os.path.join(root, b"deep", *[b"d"] * _DEPTH))
    _write(os.path.join(root, b"deep", *[b"d"] * _DEPTH, b"bottom"), b"deep")
    for name, value in ((b"large", b"of a file"), (b"empty dir", b"of a directory"), (b"", bytes(range(256)))):
        os.setxattr(os.path.join(root, name), b"user.origin", value)
    _own_and_date(root, uid)
    for name, mode in ((b"empty", 0), (b"large", 0o640), (b"zeros", 0o4755), (b"forbidden dir", 0), (b"", 0o1751)):
        os.chmod(os.path.join(root, name), mode)


def fingerprint(path: Path, *, ignored: bytes | None = None) -> dict[bytes, Entry]:
    """All entries below `path`, except files named `ignored`; and `path` itself, under the empty name.

    Fails if they belong to several users of sandboxes, since then at most one of them can be the right one.
    """
    root = os.fsencode(path)
    names = [name for name in _walk(root) if os.path.basename(name) != ignored]
    statuses = {name: os.lstat(os.path.join(root, name) if name else root) for name in names}
    owners = {number for status in statuses.values() for number in (status.st_uid, status.st_gid) if number in OWNERS}
    assert len(owners) <= 1, f"the tree belongs to several sandboxes: {owners}"
    names_of: dict[tuple[int, int], list[bytes]] = {}
    for name, status in statuses.items():
        if not stat.S_ISDIR(status.st_mode):
            names_of.setdefault((status.st_dev, status.st_ino), []).append(name)
    return {
        name: _entry(
            os.path.join(root, name) if name else root,
            status,
            tuple(sorted(names_of.get((status.st_dev, status.st_ino), []))),
        )
        for name, status in statuses.items()
    }


def _names(max_name_bytes: int) -> list[bytes]:
    return [
        b"plain",
        b"with space",
        b" leading and trailing ",
        b"new\nline",
        b"-rf",
        b"--help",
        b"'single' \"double\" `back` $(echo no) \\",
        b"tab\tand\x1bescape",
        b"*?[a-z]",
        b"...",
        b"#comment",
        b"!important",
        "Grüße 🌲".encode(),
        b"not utf-8 \xff\xfe\x80",
        b"x" * max_name_bytes,
    ]


def _write(path: bytes, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _own_and_date(root: bytes, uid: int) -> None:
    for number, name in enumerate(sorted(_walk(root), reverse=True)):
        path = os.path.join(root, name) if name else root
        os.chown(path, uid, uid, follow_symlinks=False)
        os.utime(path, (_LONG_AGO_S, _LONG_AGO_S + number), follow_symlinks=False)


def _walk(root: bytes) -> list[bytes]:
    found, pending = [b""], [b""]
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                name = os.path.join(folder, entry.name)
                found.append(name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name)
    return found


def _entry(path: bytes, status: os.stat_result, links: tuple[bytes, ...]) -> Entry:
    regular = stat.S_ISREG(status.st_mode)
    return Entry(
        kind=stat.S_IFMT(status.st_mode),
        mode=stat.S_IMODE(status.st_mode),
        uid=of_all_sandboxes(status.st_uid),
        gid=of_all_sandboxes(status.st_gid),
        mtime_s=status.st_mtime_ns // 1_000_000_000,
        size=status.st_size if regular else None,
        sha256=_hash(path) if regular else None,
        target=os.readlink(path) if stat.S_ISLNK(status.st_mode) else None,
        links=links,
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in _user_xattrs(path)),
    )


def of_all_sandboxes(user: int) -> int:
    """The user of all sandboxes for the own user of one that is awake; any other user as it is."""
    return DEFAULT_UID if user in OWNERS else user


def _user_xattrs(path: bytes) -> list[str]:
    try:
        return sorted(name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user."))
    except OSError as e:
        if e.errno == errno.ENOTSUP:  # a file system or squashfs without any
            return []
        raise


def _hash(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kinds_and_content(root: Path) -> dict[bytes, tuple[object, ...]]:
    """The properties that a tar archive of a tree keeps, by path."""
    return {
        name: (entry.kind, entry.mode & 0o777, entry.sha256, entry.target, entry.links)
        for name, entry in fingerprint(root).items()
    }
