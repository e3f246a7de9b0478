"""Random changes to a tree, drawn by hypothesis, and a description of a tree for comparison.

All use a few names, so that changes often hit the same path, and often one that was restored.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hypothesis import strategies as st

from actors.node.system_calls import checked, libc
from tests.support.trees import Entry, fingerprint

Kind = Literal[
    "write", "append", "truncate", "replace", "rename", "unlink", "rmtree", "rmdir", "mkdir", "symlink", "link",
    "chmod", "touch", "setxattr", "removexattr", "fifo", "exchange", "rewrite",
]  # fmt: skip
NAMES = ("a", "b", "c", "x" * 255)
TEMPORARY = ".temporary"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True, slots=True)
class Change:
    """A change. `other` is the second path, for kinds that have two; `number` is the content, mode or value."""

    kind: Kind
    path: str
    other: str
    number: int


def paths(names: Sequence[str] = NAMES) -> st.SearchStrategy[str]:
    """Strategy for a path of one to three names."""
    return st.lists(st.sampled_from(names), min_size=1, max_size=3).map("/".join)


def changes(*kinds: Kind, names: Sequence[str] = NAMES) -> st.SearchStrategy[Change]:
    """Strategy for a change of one of these kinds."""
    return st.builds(Change, st.sampled_from(kinds), paths(names), paths(names), st.integers(0, 999))


def populate(root: Path) -> None:
    """Makes the initial tree in the new directory `root`."""
    for path in ("a/a/a", "a/a/b", "a/b", "a/c/a", "b/a", "b/b/a", f"b/{'x' * 255}", f"{'x' * 255}/a"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"restored {path[:9]}")
    (root / "c").write_text("restored c")
    (root / "b" / "c").symlink_to("a")
    os.setxattr(root / "c", "user.value", b"restored")


def apply(change: Change, root: Path) -> bool:
    """Makes a change; returns False if it failed, since many make no sense in the current tree. Never waits."""
    try:
        _apply(change, root / change.path, root / change.other)
    except (OSError, shutil.Error):
        return False
    return True


def described(root: Path, *, ignored: bytes | None = None) -> dict[bytes, Entry]:
    """The tree without expected differences: owners, since a backup gives all files to the sandbox; and times."""
    return {
        name: dataclasses.replace(entry, uid=0, gid=0, mtime_s=0)
        for name, entry in fingerprint(root, ignored=ignored).items()
        if name != b""
    }


def _apply(change: Change, path: Path, other: Path) -> None:
    if change.kind in ("write", "rewrite", "rmtree") and path.is_fifo():
        raise OSError(errno.EINVAL, "opening the pipe would wait for another process")
    match change.kind:
        case "write":
            path.write_text(f"written {change.number}")
        case "append":
            with path.open("r+") as file:
                file.seek(0, os.SEEK_END)
                file.write(f" and {change.number}")
        case "truncate":
            os.truncate(path, change.number)
        case "replace":
            temporary = path.parent / TEMPORARY
            temporary.write_text(f"replaced {change.number}")
            try:
                temporary.rename(path)
            except OSError:
                temporary.unlink()
                raise
        case "rename":
            _rename(path, other)
        case "unlink":
            path.unlink()
        case "rmtree":
            shutil.rmtree(path)
        case "rmdir":
            path.rmdir()
        case "mkdir":
            path.mkdir()
        case "symlink":
            path.symlink_to(change.other)
        case "link":
            os.link(path, other, follow_symlinks=False)
        case "chmod":
            if not path.is_symlink():
                path.chmod([0o600, 0o755, 0o2770, 0o444][change.number % 4])
        case "touch":
            os.utime(path, (0, change.number * 1_000_000), follow_symlinks=False)
        case "setxattr":
            if not path.is_symlink():
                os.setxattr(path, "user.value", b"%d" % change.number)
        case "removexattr":
            if not path.is_symlink():
                os.removexattr(path, "user.value")
        case "fifo":
            os.mkfifo(path)
        case "exchange":
            checked(libc.renameat2(_AT_FDCWD, bytes(path), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE))
        case "rewrite":
            _rewrite(path)


def _rewrite(path: Path) -> None:
    """Changes the content of a file, but neither its size nor its time."""
    with path.open("r+b") as file:
        before = os.fstat(file.fileno())
        content = file.read()
        file.seek(0)
        file.write(bytes(byte ^ 1 for byte in content))
        file.flush()
        os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))


def _rename(path: Path, other: Path) -> None:
    """Renames. A directory that the driver cannot rename is copied and deleted, as mv does."""
    try:
        path.rename(other)
    except OSError as e:
        if e.errno != errno.EXDEV:
            raise
        if other.exists():
            other.rmdir()
        shutil.copytree(path, other, symlinks=True)
        shutil.rmtree(path)
