"""The attributes that files and directories can have: how to set each one, and how to read it back.

Each has the name of its row in docs/reference/attributes.md, and each permitted change has the name in the row's cells.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.sandboxes import UID
from tests.support.trees import of_all_sandboxes

Look = Callable[[Path], object]
Change = Callable[[Any, Any], bool]
_PAST_S = 1_234_567_890
_RECENT_S = 1_700_000_000
_FRACTION_NS = 987_654_321
_FAR_S = (-1_000_000_000, 5_000_000_000)
_LOW_BITS = 2**32
_HOLE_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Attribute:
    """One row of docs/reference/attributes.md.

    `make` sets the attribute and `look` reads it. Both get a folder made for it, or the backed-up directory itself if
    `is_of_root`.

    `absent` is the result of `look` if the attribute was left out. `changes` maps the name of each permitted change to
    a function that tells whether the results of `look` before and after differ in that way.
    """

    make: Callable[[Path], object]
    look: Look
    absent: object = None
    changes: Mapping[str, Change] = field(default_factory=dict)
    is_of_root: bool = False


def _own(place: Path) -> Path:
    owner = place.parent.stat().st_uid
    os.chown(place, owner, owner, follow_symlinks=False)
    return place


def _file(place: Path, data: bytes = b"data") -> Path:
    place.write_bytes(data)
    return _own(place)


def _folder(place: Path) -> Path:
    place.mkdir()
    return _own(place)


def _link(place: Path, target: str | bytes) -> Path:
    os.symlink(target, os.fsencode(place) if isinstance(target, bytes) else place)
    return _own(place)


def _fifo(place: Path) -> Path:
    os.mkfifo(place)
    return _own(place)


def _device(place: Path, kind: int, device: int) -> Path:
    os.mknod(place, 0o600 | kind, device)
    return _own(place)


def _socket(place: Path) -> Path:
    folder = os.open(place.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{folder}/{place.name}")  # the whole path may be too long for a socket
    os.close(folder)
    return _own(place)


def _names(folder: Path) -> list[bytes]:
    return sorted(os.listdir(os.fsencode(folder)))


def _kinds(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IFMT(path.lstat().st_mode) for path in sorted(folder.iterdir())}


def _modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in sorted(folder.iterdir())}


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _times_ns(folder: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_mtime_ns for path in sorted(folder.iterdir())}


def _xattrs(*prefixes: str) -> Look:
    """Reads the extended attributes with these prefixes, of everything in a folder that has any."""

    def look(folder: Path) -> object:
        found = {}
        for path in sorted(folder.iterdir()):
            try:
                names = os.listxattr(path, follow_symlinks=False)
            except OSError as e:
                if e.errno != errno.ENOTSUP:
                    raise
                names = []
            wanted = {name for name in names if name.startswith(prefixes)}
            if wanted:
                found[path.name] = {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(wanted)}
        return found

    return look


def _root_xattrs(folder: Path) -> object:
    return {name: os.getxattr(folder, name) for name in os.listxattr(folder) if name.startswith("user.")}


def _linked(folder: Path) -> list[list[str]]:
    """The names of each inode."""
    inodes: dict[int, list[str]] = {}
    for path in sorted(folder.iterdir()):
        inodes.setdefault(path.lstat().st_ino, []).append(path.name)
    return sorted(inodes.values())


def _data_blocks(folder: Path) -> bool:
    """True if a file of one hole takes up almost no space."""
    return (folder / "sparse").stat().st_blocks * 512 < _HOLE_BYTES // 8


def _flags(folder: Path) -> object:
    """The flags that users set with chattr(1), of everything in a folder that has any."""
    found = {}
    for path in sorted(folder.iterdir()):
        listed = subprocess.run(["lsattr", "-d", path], capture_output=True, text=True)
        flags = set(listed.stdout.split(" ")[0]) & set("dASDiajT")
        if flags:
            found[path.name] = "".join(sorted(flags))
    return found


def _dated(place: Path, seconds: float) -> Path:
    os.utime(place, ns=(int(seconds * 10**9), int(seconds * 10**9)), follow_symlinks=False)
    return place


def _with_times(folder: Path, *times_ns: int) -> None:
    for number, time_ns in enumerate(times_ns):
        for place in (
            _file(folder / f"file{number}"),
            _folder(folder / f"folder{number}"),
            _link(folder / f"link{number}", "x"),
        ):
            os.utime(place, ns=(time_ns, time_ns), follow_symlinks=False)


def _with_mode(folder: Path, *modes: int) -> None:
    for mode in modes:
        _file(folder / f"file {mode:o}").chmod(mode)
        _folder(folder / f"folder {mode:o}").chmod(mode)


def _with_links(folder: Path, first: Path) -> None:
    for name in ("second", "third"):
        os.link(first, folder / name, follow_symlinks=False)


def _link_to_outside(folder: Path) -> None:
    outside = folder.parent.parent / f"outside of {folder.parent.name}"
    os.link(_file(folder / "first"), outside)
    os.link(outside, folder / "second")


def _of_others(folder: Path) -> None:
    (folder / "of root").write_bytes(b"data")
    (folder / "of another").write_bytes(b"data")
    os.chown(folder / "of another", 12_345, 54_321)


def _owners(place: Path) -> tuple[int, int]:
    return of_all_sandboxes(place.stat().st_uid), of_all_sandboxes(place.stat().st_gid)


def _set(place: Path, **attributes: bytes) -> Path:
    for name, value in attributes.items():
        os.setxattr(place, name.replace("_", ".", 1), value, follow_symlinks=False)
    return place


def _with_acl(place: Path, *options: str) -> None:
    subprocess.run(["setfacl", *options, place], check=True)


def _able(folder: Path) -> None:
    subprocess.run(["setcap", "cap_net_raw+ep", _file(folder / "able")], check=True)


def _flagged(folder: Path, *flags: str) -> None:
    for flag in flags:
        for place in (_file(folder / f"file{flag}"), _folder(folder / f"folder{flag}")):
            subprocess.run(["chattr", f"+{flag}", place], check=True)


def _deep(folder: Path, *, names: str, depth: int) -> None:
    root = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(names, dir_fd=root)
        os.chown(names, os.fstat(root).st_uid, os.fstat(root).st_uid, dir_fd=root)
        below = os.open(names, os.O_RDONLY, dir_fd=root)
        os.close(root)
        root = below
    os.close(root)


def _depth(folder: Path) -> int:
    found, here = 0, os.open(folder, os.O_RDONLY)
    while names := os.listdir(here):
        below = os.open(names[0], os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, found = below, found + 1
    os.close(here)
    return found


def _each(change: Callable[[int], object]) -> Change:
    return lambda before, after: bool(after == {name: change(value) for name, value in before.items()})


def _named_trusted(before: dict[str, dict[str, bytes]], after: object) -> bool:
    return after == {
        name: {attribute.replace("security.", "trusted."): value for attribute, value in found.items()}
        for name, found in before.items()
    }


_CLOCK: Mapping[str, Change] = {
    "the modification time": lambda before, after: after == _PAST_S,
    "when it was restored": lambda before, after: after >= before and after > _RECENT_S,
}


ATTRIBUTES: Mapping[str, Attribute] = {
    "regular file": Attribute(
        lambda at: [_file(at / "full", bytes(range(256)) * 3000), _file(at / "empty", b"")], _contents
    ),
    "directory, also an empty one": Attribute(lambda at: _folder(at / "empty"), _kinds),
    "symbolic link: absolute, dangling, of 4,095 bytes": Attribute(
        lambda at: [_link(at / "a", "/etc/passwd"), _link(at / "b", b"\xff none"), _link(at / "c", "x/" * 2047 + "y")],
        lambda at: {path.name: os.readlink(path) for path in sorted(at.iterdir())},
    ),
    "fifo": Attribute(lambda at: _fifo(at / "fifo"), _kinds),
    "socket": Attribute(lambda at: _socket(at / "socket"), _kinds, absent={}),
    "device": Attribute(
        lambda at: [
            _device(at / "c", stat.S_IFCHR, os.makedev(1, 3)),
            _device(at / "b", stat.S_IFBLK, os.makedev(7, 0)),
        ],
        _kinds,
        absent={},
    ),
    "whiteout (a character device 0:0)": Attribute(lambda at: _device(at / "w", stat.S_IFCHR, 0), _kinds, absent={}),
    "holes": Attribute(
        lambda at: os.truncate(_file(at / "sparse"), _HOLE_BYTES),
        _data_blocks,
        changes={"filled with zeros": lambda before, after: before and not after},
    ),
    "names of any bytes": Attribute(
        lambda at: [
            _file(Path(os.fsdecode(os.fsencode(at) + b"/" + name)))
            for name in (b"new\nline", b"\xff\x80", b"-rf", b" ", b"*")
        ],
        _names,
    ),
    "names of 255 bytes": Attribute(lambda at: _file(at / ("x" * 255)), _names),
    "names that begin with .wh.": Attribute(lambda at: _file(at / ".wh.x"), _names),
    "names of our temporary files": Attribute(lambda at: _file(at / ".holdfast-0123456789abcdef"), _names, absent=[]),
    "trees of 500 levels": Attribute(lambda at: _deep(at, names="d", depth=500), _depth),
    "trees of more than 512 levels": Attribute(lambda at: _deep(at, names="d", depth=513), _depth),
    "paths over 4,095 bytes": Attribute(lambda at: _deep(at, names="d" * 200, depth=25), _depth),
    "permission bits": Attribute(lambda at: _with_mode(at, 0, 0o400, 0o755, 0o777), _modes),
    "setuid, setgid and sticky bits": Attribute(lambda at: _with_mode(at, 0o4755, 0o2770, 0o1777, 0o7000), _modes),
    "mode of the directory itself": Attribute(
        lambda at: at.chmod(0o1751), lambda at: stat.S_IMODE(at.stat().st_mode), is_of_root=True
    ),
    "owner and group": Attribute(
        _of_others,
        lambda at: {path.name: _owners(path) for path in sorted(at.iterdir())},
        changes={"the sandbox's user and group": _each(lambda _: (UID, UID))},
    ),
    "modification time, in whole seconds": Attribute(
        lambda at: _with_times(at, 0, _PAST_S * 10**9, (2**32 - 1) * 10**9), _times_ns
    ),
    "its fraction of a second": Attribute(
        lambda at: _with_times(at, _PAST_S * 10**9 + _FRACTION_NS),
        _times_ns,
        changes={"cut off": _each(lambda time_ns: time_ns // 10**9 * 10**9)},
    ),
    "modification time before 1970 or after February 2106": Attribute(
        lambda at: _with_times(at, *(second * 10**9 for second in _FAR_S)),
        _times_ns,
        changes={"its lower 32 bits": _each(lambda time_ns: time_ns // 10**9 % _LOW_BITS * 10**9)},
    ),
    "modification time of the directory itself": Attribute(
        lambda at: _dated(at, _PAST_S), lambda at: at.stat().st_mtime_ns, is_of_root=True
    ),
    "time of access": Attribute(
        lambda at: os.utime(_fifo(at / "fifo"), (1, _PAST_S)),
        lambda at: (at / "fifo").stat().st_atime,
        changes=_CLOCK,
    ),
    "time of change": Attribute(
        lambda at: _dated(_fifo(at / "fifo"), _PAST_S),
        lambda at: (at / "fifo").stat().st_ctime,
        changes=_CLOCK,
    ),
    "time of birth": Attribute(
        lambda at: _fifo(at / "fifo"),
        lambda at: int(subprocess.check_output(["stat", "-c", "%W", at / "fifo"])),
        absent=0,
        changes=_CLOCK,
    ),
    "hard links of files": Attribute(lambda at: _with_links(at, _file(at / "first")), _linked),
    "hard links of symbolic links": Attribute(lambda at: _with_links(at, _link(at / "first", "x")), _linked),
    "hard links of fifos": Attribute(
        lambda at: _with_links(at, _fifo(at / "first")),
        _linked,
        changes={"a fifo for each name": lambda before, after: after == [[name] for names in before for name in names]},
    ),
    "hard links to names outside": Attribute(_link_to_outside, _linked),
    "xattrs user.*": Attribute(
        lambda at: [
            _set(_file(at / "file"), user_a=bytes(range(256)), user_b=b"b"),
            _set(_folder(at / "folder"), user_c=b"c"),
        ],
        _xattrs("user."),
    ),
    "xattrs user.* without a value": Attribute(lambda at: _set(_file(at / "file"), user_empty=b""), _xattrs("user.")),
    "xattrs user.* that begin with user.overlay.": Attribute(
        lambda at: os.setxattr(_file(at / "file"), "user.overlay.opaque", b"y"), _xattrs("user."), absent={}
    ),
    "xattrs user.* of the directory itself": Attribute(
        lambda at: _set(at, user_root=b"r"), _root_xattrs, is_of_root=True
    ),
    "xattrs trusted.*": Attribute(
        lambda at: [_set(_file(at / "file"), trusted_a=b"a"), _set(_link(at / "link", "x"), trusted_b=b"b")],
        _xattrs("trusted."),
        absent={},
    ),
    "xattrs security.*": Attribute(
        lambda at: [_set(_file(at / "file"), security_a=b"a"), _set(_link(at / "link", "x"), security_b=b"b")],
        _xattrs("security.", "trusted."),
        absent={},
        changes={"named trusted.*": _named_trusted},
    ),
    "file capabilities": Attribute(
        _able, _xattrs("security.", "trusted."), absent={}, changes={"named trusted.*": _named_trusted}
    ),
    "POSIX ACLs": Attribute(lambda at: _with_acl(_file(at / "file"), "-m", "u:12345:r"), _xattrs("system."), absent={}),
    "default ACL of a directory": Attribute(
        lambda at: _with_acl(_folder(at / "folder"), "-d", "-m", "u:12345:r"), _xattrs("system."), absent={}
    ),
    "flags of chattr: s u S i a d A j D T V F": Attribute(
        lambda at: _flagged(at, "d", "A", "S", "i", "a"), _flags, absent={}
    ),
}
