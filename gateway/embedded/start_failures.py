"""Turns errors of a start of `holdfast serve` into a sentence and a hint.

The operating system, the node, the store and Ray raise errors of their own kinds. The operator reads one line that says
what failed, and one that says what to do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.errors import InvalidRequestError, ServiceUnavailableError
from actors.node.errors import NodeError, is_full
from storage.errors import StorageError
from storage.room import lacks_room

_RAY_BYTES = 8 * 1024**2
_RAY_FILES = 256
"""Room for Ray's files that a start needs: 2 MiB and 150 files (measured), and some for Ray's first minutes."""
_SHOWN_CHARACTERS = 300
_ELSEWHERE = "choose another folder with --data-dir, or another TMPDIR if it is Ray's"
_FIXES = {
    errno.ENOSPC: "Make room on that disk.",
    errno.EDQUOT: "Make room within that user's quota.",
    errno.EROFS: f"It is mounted read-only: {_ELSEWHERE}; in a container, mount a writable volume there.",
    errno.EACCES: f"Run as root, or {_ELSEWHERE}.",
    errno.EPERM: f"Run as root, or {_ELSEWHERE}.",
    errno.ENOTDIR: f"A file is where a folder should be: {_ELSEWHERE}.",
    errno.EEXIST: f"A file is where a folder should be: {_ELSEWHERE}.",
    errno.EISDIR: f"A folder is where a file should be: {_ELSEWHERE}.",
    errno.ENAMETOOLONG: f"Its path is too long: {_ELSEWHERE}.",
    errno.EMFILE: "Raise the limit of open files: ulimit -n 65536 (docker run --ulimit nofile=65536:65536).",
    errno.ENFILE: "Raise the machine's limit of open files: sysctl fs.file-max.",
    errno.EAGAIN: "Raise the limit of processes: ulimit -u, or that of the container (--pids-limit, podPidsLimit).",
    errno.ENOMEM: "Give it more memory: Ray, the store and the gateway need 1 GiB before the first sandbox starts.",
}
_OTHERWISE = "`holdfast doctor` says what this machine lacks."

_UNIX_SOCKET_PATH_BYTES = 107
"""The longest path of a socket. Source: unix(7), sun_path, less its last zero byte."""
_LONGEST_SESSION = "session_2000-01-01_00-00-00_000000_"
LONGEST_SOCKET = "dash_TaskEventsHead"
"""The longest name of Ray's sockets; the dashboard makes that socket. Source: Ray 2.60, measured."""


@contextmanager
def named(data_dir: Path) -> Iterator[None]:
    """Raises errors of a start, within the block, as errors with a sentence and a hint.

    Raises:
        InvalidRequestError: the file system or a limit of the machine prevents the start.
        ServiceUnavailableError: a part did not start.
    """
    try:
        yield
    except OSError as e:
        where = f"{os.fsdecode(e.filename)}: " if isinstance(e.filename, (str, bytes)) else ""
        if not where and is_full(e) and lacks_room(data_dir, 0):
            where = f"the disk of {data_dir}: "
        raise InvalidRequestError(
            f"The service cannot start: {where}{e.strerror or _first_line(e)}.",
            hint=_FIXES.get(e.errno or 0, _OTHERWISE),
        ) from e
    except (StorageError, NodeError) as e:
        raise ServiceUnavailableError(f"The service cannot start: {_first_line(e)}.", hint=e.hint or _OTHERWISE) from e


def ray_did_not_start(error: Exception) -> ServiceUnavailableError:
    """The error for any exception of Ray's start; Ray has no classes of its own for that."""
    first, last = _first_line(error), _last_line(error)
    return ServiceUnavailableError(
        f"Ray did not start: {first if first == last else f'{first} … {last}'}.",
        hint="The machine may be short of memory, processes or open files, or busy: look at `free` and `ulimit -a`, "
        "then try again.",
    )


def check_room(folder: Path) -> None:
    """Raises InvalidRequestError if the disk of `folder` has no room for Ray's files.

    Ray itself would start in part, and not name the cause.
    """
    if lacks_room(folder, _RAY_BYTES, files=_RAY_FILES):
        raise InvalidRequestError(
            f"The disk of {folder} is full, and Ray keeps its files there.",
            hint="Make room on that disk, or set TMPDIR to a folder on another one.",
        )


def check_socket_paths(folder: Path) -> None:
    """Raises InvalidRequestError if the paths of Ray's sockets below `folder` would be too long.

    Ray's own check comes after its first processes have started, and covers only some of its sockets.
    """
    tail = Path(f"{_LONGEST_SESSION}{os.getpid()}", "sockets", LONGEST_SOCKET)
    excess = len(os.fsencode(folder / tail)) - _UNIX_SOCKET_PATH_BYTES
    if excess > 0:
        raise InvalidRequestError(
            f"The temporary folder's path is {excess} bytes too long for the sockets that Ray keeps there: {folder}.",
            hint="Set TMPDIR to a short path, like /tmp or /var/tmp.",
        )


def _first_line(error: Exception) -> str:
    return _lines(error)[0]


def _last_line(error: Exception) -> str:
    """The last line of an error: if the error quotes a log, that line is nearest to the cause."""
    return _lines(error)[-1]


def _lines(error: Exception) -> list[str]:
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return [line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…" for line in lines] or [
        type(error).__name__
    ]
