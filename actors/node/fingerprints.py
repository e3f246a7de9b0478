"""Fingerprints of a directory of plain files: a file of the node that tells what a backup of it has found there.

    blocks     for each directory, the names of its entries and a state of fixed length for each
    index      the path of each directory, and the place of its block
    header     which directory, which backup, and the boot of the machine
    trailer    the lengths of both, and the SHA-256 of everything before it

A file whose state is the same has the same content, because each change sets its ctime to the time of the clock, and
the sandbox can set neither. Three kinds of files get a state that equals no other (`DOUBTFUL`), so that the next backup
archives them again:

* those whose ctime is not older than the walk by more than a tick of the clock: a later change within that tick would
  leave the same ctime ("racy" in git). The coarse clock counts, which files get their times from: on a virtual machine
  it may stand still while the exact one goes on;
* those whose ctime is in whole seconds, as on ext4 with small inodes: if the clock is set back, a second comes twice;
* those that a process has in a shared mapping: a page that was written to already can be written to again without any
  trace in the inode, until it is written back. Where the processes cannot be looked at, the file system is synced.

The file is valid for one boot, since after a crash of the machine a disk may hold older content than was read before;
and until the clock is set back, since a later change could leave the same ctime then.
Source: git's Documentation/technical/racy-git.txt; file_update_time in the kernel's fs/inode.c; tick_sched_do_timer in
kernel/time/tick-sched.c.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from actors.node import mountinfo
from actors.node.errors import NoLayerError
from actors.node.system_calls import checked, libc
from actors.node.verified import boot_id

_STATE = struct.Struct("<IQQqqI")
_EACH = struct.Struct(f"{_STATE.size}s")
DOUBTFUL = b"\xff" * _STATE.size
DIRECTORY = b"\xfe" * _STATE.size
"""The state of a subdirectory in the block of the directory above; its own is in its own block."""
_ITSELF = "."
_TRAILER = struct.Struct("<QQ32s")
_TICK_NS = 20_000_000
"""More than a tick of the kernel's clock, by which it sets times: 10 ms at most."""
_CLOCK_REALTIME_COARSE = 5
"""Source: linux/time.h."""
_SECOND_NS = 1_000_000_000
_MAX_ENTRIES = 500_000
_FILE_SYSTEMS = frozenset({"ext4", "xfs"})
"""Those whose device and inode numbers in /proc/<pid>/maps are those of stat(2), and that note a write to a mapping."""


@dataclass(frozen=True, slots=True)
class Header:
    """The directory and the backup that the fingerprints belong to. `lead_ns` is `clock_lead_ns` during the walk."""

    device: int
    inode: int
    backup_id: str
    boot: str
    lead_ns: int


def clock_lead_ns() -> int:
    """The lead of the clock that files get their times from over one that nobody can set. Less if it was set back."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """Makes states, and tells which are doubtful. Made before the walk, while no process of the sandbox runs."""

    def __init__(self, fd: int, uid: int) -> None:
        """`fd` is the directory, and `uid` the user of the sandbox's processes. Raises NoLayerError."""
        self._device = os.fstat(fd).st_dev
        self._mapped: set[int] = set()
        try:
            self._mapped = mapped_files(self._device, uid)
        except OSError:  # without CAP_SYS_PTRACE
            _write_back(fd)
        self.lead_ns = clock_lead_ns()
        self._began_ns = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)

    def state(self, found: os.stat_result) -> bytes:
        """The state of a file or directory, as it is compared with an earlier one.

        Its owner is not in it: an archive gives all files to one, and a view shows another each time a sandbox wakes.
        """
        return _STATE.pack(
            found.st_mode,
            found.st_ino,
            found.st_size if not stat.S_ISDIR(found.st_mode) else 0,
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_nlink & 0xFFFFFFFF,
        )

    def lasting(self, found: os.stat_result, state: bytes) -> bytes:
        """The state to record: DOUBTFUL if a later change could leave no trace in it."""
        is_racy = found.st_ctime_ns >= self._began_ns - _TICK_NS or found.st_ctime_ns % _SECOND_NS == 0
        is_elsewhere = found.st_dev != self._device
        return DOUBTFUL if is_racy or is_elsewhere or found.st_ino in self._mapped else state


def check_file_system(fd: int) -> None:
    """Raises NoLayerError if the fingerprints of a directory would prove nothing, or something is mounted in it."""
    root = Path(os.readlink(f"/proc/self/fd/{fd}"))
    mounts = mountinfo.mounts()
    if any(mount.point != root and mount.point.is_relative_to(root) for mount in mounts):
        raise NoLayerError("another directory was restored inside it")
    mount_id = mountinfo.id_of(fd)
    kind = next((mount.fs_type for mount in mounts if mount.id == mount_id), "an unknown file system")
    if kind not in _FILE_SYSTEMS:
        raise NoLayerError(f"the times of files on {kind} do not tell whether they were changed")


def check_clock(before: Header) -> None:
    """Raises NoLayerError if the clock was set back since the fingerprints were made.

    A correction of a second in all is let through: it takes more to bring back a time that is not doubtful, unless to
    the nanosecond.
    """
    if clock_lead_ns() < before.lead_ns - _SECOND_NS:
        raise NoLayerError("the clock was set back since the last backup")


def mapped_files(device: int, uid: int) -> set[int]:
    """The inodes on a device that any process of the user `uid` has in a shared mapping.

    Raises OSError if a process cannot be looked at.
    """
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}"
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if uid not in _users(pid):
                continue
            for line in _maps(pid):
                fields = line.split(None, 5)
                if len(fields) >= 5 and fields[1][3:4] == "s" and fields[3] == wanted:
                    found.add(int(fields[4]))
    return found


def _maps(pid: str) -> Iterator[str]:
    """The lines of a process's mappings. If its first thread has ended, only the others still have them."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace", newline="\n") as lines:
        first = next(lines, None)
        if first is not None:
            yield first
            yield from lines
            return
    for thread in os.listdir(f"/proc/{pid}/task"):
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{pid}/task/{thread}/maps", encoding="utf-8", errors="replace", newline="\n") as lines,
        ):
            yield from lines


def _users(pid: str) -> list[int]:
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    line = next((line for line in status.splitlines() if line.startswith("Uid:")), "")
    return [int(word) for word in line.split()[1:]]


def _write_back(fd: int) -> None:
    """Writes back all that is dirty in the file system, so that each later write to a mapping is noted.

    Raises NoLayerError.
    """
    copy = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        checked(libc.syncfs(copy))
    except OSError as e:
        raise NoLayerError("the file system could not be synced") from e
    finally:
        os.close(copy)


class Recorder:
    """Writes the fingerprints of one walk to a file of its own, directory by directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("wb")
        self._index: list[tuple[str, int, int]] = []
        self._entries = 0
        self._is_given_up = False
        """True if there are too many entries, or the disk is full: the backup does not fail for that."""

    def add(self, directory: str, itself: bytes, entries: dict[str, bytes]) -> None:
        """Records a directory, by its path from the root, with its own state and those of its entries."""
        self._entries += len(entries) + 1
        if self._is_given_up or self._entries > _MAX_ENTRIES:
            self._is_given_up = True
            return
        names = os.fsencode("\0".join((_ITSELF, *entries)))  # all at once: a call for each takes longer
        try:
            self._index.append((directory, self._file.tell(), len(names)))
            self._file.write(names + itself + b"".join(entries.values()))
        except OSError:
            self._is_given_up = True

    def close(self) -> None:
        """Closes the file. Repeatable; raises nothing."""
        with contextlib.suppress(OSError):
            self._file.close()

    def finish(self, header: Header, target: Path) -> None:
        """Puts the fingerprints in the place `target`, whole or not at all. Raises OSError."""
        if self._is_given_up:
            self.close()
            self.path.unlink()
            target.unlink(missing_ok=True)
            return
        index, head = json.dumps(self._index).encode(), json.dumps(asdict(header)).encode()
        self._file.write(index + head)
        self._file.flush()
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        self._file.write(_TRAILER.pack(len(index), len(head), digest))
        self._file.close()
        target.parent.mkdir(mode=0o700, exist_ok=True)
        os.replace(self.path, target)


class Fingerprints:
    """The fingerprints in a file, read directory by directory."""

    def __init__(self, data: mmap.mmap, header: Header, index: dict[str, tuple[int, int]], end: int) -> None:
        self._data = data
        self.header = header
        self._index = index
        self._end = end

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """Opens the fingerprints at `path`; None if there are none that are whole and of this boot."""
        try:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            index_size, head_size, digest = _TRAILER.unpack(data[-_TRAILER.size :])
            end = len(data) - _TRAILER.size
            if hashlib.sha256(memoryview(data)[:end]).digest() != digest:
                return None
            head_at = end - head_size
            header = Header(**json.loads(data[head_at:end]))
            rows = json.loads(data[head_at - index_size : head_at])
        except (OSError, ValueError, struct.error, TypeError):
            return None
        if header.boot != boot_id():
            return None
        return cls(data, header, {path: (at, size) for path, at, size in rows}, head_at - index_size)

    def directory(self, path: str) -> dict[str, bytes]:
        """The states of a directory's entries, and its own under ".". Raises NoLayerError if it is not recorded."""
        found = self._index.get(path)
        if found is None:
            raise NoLayerError("a directory has no fingerprints")
        at, size = found
        names = os.fsdecode(self._data[at : at + size]).split("\0")
        at += size
        states = self._data[at : at + len(names) * _STATE.size]
        return dict(zip(names, (state for (state,) in _EACH.iter_unpack(states)), strict=True))
