"""The commands that make and unpack squashfs archives, and checks of their results that do not trust the tools.

Facts about mksquashfs 4.5.1 that shape this module (each seen in an experiment): without -exit-on-error a
file that cannot be read becomes an empty file, with exit status 0; a dead FUSE mount gives an archive of
one entry, with exit status 0 even so; a file that keeps growing makes it run for ever; its progress goes to
stdout and its complaints to stderr, whatever the status. It takes two names for one inode if all that lstat(2) returns
for them is equal, the access time included.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.node.errors import ArchiveError, NodeError, NoSpaceLeftError, ToolError, TreeError, full_disk_in
from actors.node.exclusions import Exclusion
from actors.node.process import Ended, printable
from actors.node.survey import Limits, survey

BLOCK = "256K"
"""The block size: as small an archive as with 1 MiB (165 of 482 MB), and cheaper to read at random."""
PATH_BYTES = 4000
"""The longest path, relative to the directory, in an archive. mksquashfs names a file by 4,093 bytes at most, and
unsquashfs by as many, with the folder before it into which it unpacks (seen in an experiment; PATH_MAX in
linux/limits.h). So a longer one could be archived, but not be unpacked again."""
_PROCESSORS = str(max(1, os.cpu_count() or 1))
_MOST_WORDS = 4000
"""bwrap takes 9,000 arguments at most (seen in an experiment)."""
_MOST_WORDS_BYTES = 100_000
"""Less than the longest single argument. Source: MAX_ARG_STRLEN in linux/binfmts.h."""

_SUPERBLOCK = struct.Struct("<IIIIIHHHHHHQQ")
_XATTR_TABLE_AT = 56
_NO_TABLE = b"\xff" * 8
_MAGIC = 0x73717368
_PERCENT = re.compile(rb"(\d{1,3})%")
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/-" + bytes(range(0x80, 0x100)))
_HARMLESS = (
    re.compile(rb"Unrecognised xattr prefix system\.posix_acl_(access|default)"),  # counted by the survey
)


@dataclass(frozen=True, slots=True)
class Superblock:
    """The head of an archive. `bytes_used` does not count the padding to 4 KiB."""

    inodes: int
    bytes_used: int


def superblock(archive: Path) -> Superblock:
    """Reads the head of an archive.

    Raises:
        ArchiveError: not a squashfs 4.0 archive, or a torn one (a killed mksquashfs leaves no head).
    """
    with archive.open("rb") as file:
        head = file.read(_SUPERBLOCK.size)
        size = os.fstat(file.fileno()).st_size
    if len(head) < _SUPERBLOCK.size:
        raise ArchiveError("the archive is too short")
    magic, inodes, _, _, _, _, _, _, _, major, _, _, bytes_used = _SUPERBLOCK.unpack(head)
    if magic != _MAGIC or major != 4:
        raise ArchiveError("not a squashfs 4.0 archive")
    if bytes_used > size:
        raise ArchiveError(f"the archive is torn: {size} of {bytes_used} bytes")
    return Superblock(inodes, bytes_used)


def has_xattrs(archive: Path) -> bool:
    """True if something in an archive has an xattr: the archive then has a table of them. Raises as `superblock`.

    Source: xattr_id_table_start, the second word after the superblock's common part; kernel fs/squashfs/squashfs_fs.h.
    """
    superblock(archive)
    with archive.open("rb") as file:
        file.seek(_XATTR_TABLE_AT)
        return file.read(len(_NO_TABLE)) != _NO_TABLE


def mksquashfs(
    output: str,
    *,
    uid: int,
    compression: str,
    level: int | None,
    memory_bytes: int,
    excludes: str | None,
    duplicates: bool = True,
) -> list[str]:
    """The command that archives its working directory.

    Every file gets the owner `uid`: inside the box all files show as root's. Identical trees give identical
    archives. `excludes` is a file with the lines of `exclude_lines`. With `duplicates`, files with the same content are
    stored once.
    """
    argv = ["mksquashfs", ".", output, "-noappend", "-exit-on-error", "-no-recovery", "-progress", "-quiet"]
    argv += ["-comp", compression, "-b", BLOCK, "-mkfs-time", "0", "-xattrs"]
    if level is not None:
        argv += ["-Xcompression-level", str(level)]
    argv += ["-mem", f"{memory_bytes >> 20}M", "-processors", _PROCESSORS]
    argv += ["-force-uid", str(uid), "-force-gid", str(uid)]
    if not duplicates:
        argv.append("-no-duplicates")
    if excludes is not None:
        argv += ["-wildcards", "-ef", excludes]
    return argv


def unsquashfs(archive: str, target: str) -> list[str]:
    """The command that unpacks an archive into a directory that does not exist yet."""
    options = ["-no-progress", "-quiet", "-user-xattrs", "-processors", _PROCESSORS]
    return ["unsquashfs", *options, "-dest", target, archive]


def listing(archive: str) -> list[str]:
    """The command that prints every path in an archive, each on a line of its own."""
    return ["unsquashfs", "-l", archive]


def sizes(archive: str) -> list[str]:
    """The command that prints every path in an archive with its type, owner and size, each on a line of its own."""
    return ["unsquashfs", "-lln", archive]


class NameReader:
    """Searches a listing for a name, piece by piece."""

    def __init__(self, wanted: Callable[[bytes], bool]) -> None:
        self._wanted = wanted
        self._rest = b""
        self.found: bytes | None = None

    def read(self, output: bytes) -> None:
        """Takes the next piece. The text after a newline within a name is checked as a name, too."""
        *lines, self._rest = (self._rest + output).split(b"\n")
        if self.found is None:
            names = (line.rpartition(b"/")[2] for line in lines)
            self.found = next(filter(self._wanted, names), None)


def exclude_lines(paths: Iterable[bytes], exclusions: Mapping[bytes, Exclusion]) -> tuple[bytes, list[str]]:
    """Turns paths into patterns: lines for `-ef`, and words for `-e` where no line can hold one.

    Args:
        paths: relative to the directory that is archived, and taken literally.
        exclusions: fewer patterns for those of one directory, by its path with a slash at its end.

    Raises:
        TreeError: there are more words than a command can have.
    """
    lines: list[bytes] = []
    words: list[str] = []

    def add(pattern: bytes) -> None:
        if b"\n" in pattern:
            words.append(os.fsdecode(pattern))
        else:
            # mksquashfs removes a backslash at the head of a line before it reads the pattern.
            lines.append(b"\\" * pattern.startswith(b"\\") + pattern + b"\n")

    for path in paths:
        above, slash, name = path.rpartition(b"/")
        exclusion = exclusions.get(above + slash)
        if exclusion is None or name in exclusion.others:
            add(_literally(path))
    for prefix, exclusion in exclusions.items():
        for text in sorted(exclusion.beginnings):
            add(_literally(prefix + text) + b"*")
        for text in sorted(exclusion.endings):
            add(_literally(prefix) + b"*" + _literally(text))
    if len(words) > _MOST_WORDS or sum(map(len, words)) > _MOST_WORDS_BYTES:
        raise TreeError(
            "Too many of the names to leave out hold line feeds.", hint="Exclude the directories that they are in."
        )
    return b"".join(lines), words


def _literally(text: bytes) -> bytes:
    """The text with every byte escaped that could have a meaning in a pattern."""
    return b"".join(bytes((c,)) if c in _PLAIN else b"\\" + bytes((c,)) for c in text)


def percent_reader(report: Callable[[int], None]) -> Callable[[bytes], None]:
    """Turns the progress bar of mksquashfs into calls of `report` with a rising percentage."""
    last = -1

    def read(output: bytes) -> None:
        nonlocal last
        for match in _PERCENT.finditer(output):
            percent = min(int(match[1]), 100)
            if percent > last:
                last = percent
                report(percent)

    return read


def verify_creation(ended: Ended, archive: Path, *, inodes: int) -> Superblock:
    """Accepts an archive only if nothing at all speaks against it.

    Raises:
        NoSpaceLeftError: the disk was full.
        ArchiveError: mksquashfs failed or complained, or the archive does not hold `inodes` inodes.
    """
    complaints = [line for line in ended.stderr.splitlines() if line.strip() and not _is_harmless(line)]
    if full_disk_in((ended.stderr + ended.stdout).decode(errors="replace")):
        raise NoSpaceLeftError("the disk is full")
    if ended.status != 0 or complaints:
        said = printable(b"; ".join(complaints) or ended.stderr)
        raise ArchiveError(f"mksquashfs ended with status {ended.status}: {said}")
    made = superblock(archive)
    if made.inodes != inodes:
        raise ArchiveError(f"the archive holds {made.inodes} inodes, the directory {inodes}")
    return made


def verify_extraction(ended: Ended, *, blamed: type[NodeError] = ToolError) -> None:
    """Raises NoSpaceLeftError or `blamed` unless unsquashfs succeeded and wrote nothing to stderr.

    If the archive's digest is verified, a failure proves nothing against the archive: `blamed` is then ToolError,
    since the tool or the node is at fault.
    """
    if full_disk_in((ended.stderr + ended.stdout).decode(errors="replace")):
        raise NoSpaceLeftError("the disk is full")
    if ended.status != 0 or ended.stderr.strip():
        raise blamed(f"unsquashfs ended with status {ended.status}: {printable(ended.stderr)}")


def verify_extracted_tree(archive: Path, root: Path, limits: Limits) -> None:
    """Raises ToolError unless the unpacked tree holds as many inodes as the archive."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = survey(fd, limits=limits)
    finally:
        os.close(fd)
    expected = superblock(archive).inodes
    unpacked = found.inodes + found.sockets + found.devices
    if unpacked != expected:
        raise ToolError(
            f"unsquashfs has unpacked another tree: the archive holds {expected} inodes, {unpacked} were unpacked"
        )


def _is_harmless(line: bytes) -> bool:
    return any(pattern.search(line) for pattern in _HARMLESS)
