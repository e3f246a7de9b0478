"""The operations that some overlay somewhere gets wrong: a program that does them in a tree and says what it sees.

    trials.py seed FOLDER LONGEST      makes the tree that is archived, one folder for each trial
    trials.py act  FOLDER LONGEST      does each trial in its folder, and looks
    trials.py look FOLDER LONGEST      looks again: after an unmount, say

`act` and `look` print one JSON object: for each trial what it noticed, and every name of its folder. `proofs` runs
them over a mounted layer and in a plain directory, and compares. They run in a process of their own, which can be
killed when a file system hangs, and use the standard library alone, so that it starts quickly.

Source: the trackers of fuse-overlayfs (issues 104, 151, 190, 273, 279, 354 and others), squashfuse and the kernel's
overlayfs; Documentation/filesystems/overlayfs.rst, "Non-standard behavior"; our own random trees.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

EXDEV = "EXDEV"
"""Noticed where a directory could not be renamed, and was copied and deleted instead, as mv(1) does."""

_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2
_MANY = 200
_TIME_S = 1_000_000_000
_libc = ctypes.CDLL(None, use_errno=True)


class Folder:
    """One trial's folder, what it noticed, and the longest name that it may use."""

    def __init__(self, path: Path, longest: int) -> None:
        self.path = path
        self.longest = longest
        self.noticed: list[str] = []

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, text: str = "new") -> Path:
        """A file that did not exist, or is overwritten in place."""
        (self / name).write_text(text)
        return self / name

    def replace(self, name: str, text: str = "new") -> None:
        """Replaces a file as editors and git do."""
        self.write("temporary", text).rename(self / name)

    def move(self, source: str, target: str) -> None:
        """Renames a directory, or copies it where the file system says that it cannot, as mv(1) does."""
        try:
            (self / source).rename(self / target)
        except OSError as e:
            if e.errno != errno.EXDEV:
                raise
            self.noticed.append(EXDEV)
            if (self / target).exists():
                (self / target).rmdir()
            shutil.copytree(self / source, self / target, symlinks=True)
            shutil.rmtree(self / source)

    def rename_specially(self, source: str, target: str, flag: int) -> None:
        """renameat2(2). A file system that does not know the flag is left alone, and the end is the same."""
        paths = [os.fsencode(self / name) for name in (source, target)]
        if _libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], flag) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
        if flag == _EXCHANGE:
            (self / source).rename(self / "between")
            (self / target).rename(self / source)
            (self / "between").rename(self / target)
        else:
            (self / source).rename(self / target)

    def set_attribute(self, name: str, attribute: str, value: bytes) -> None:
        """Sets an xattr, or notices that the file system has none."""
        try:
            os.setxattr(self / name, attribute, value)
        except OSError as e:
            if e.errno != errno.ENOTSUP:
                raise
            self.noticed.append("no xattrs")

    def long_name(self, letter: str, shorter: int = 0) -> str:
        """A name as long as may be, or a few bytes shorter."""
        return letter * (self.longest - shorter)


def _seed(folder: Folder) -> None:
    """What every trial finds in its folder, as restored."""
    for name in ("file", "other", "directory/inner", "directory/sub/deep", "first"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        folder.write(name, f"restored {name}")
    os.link(folder / "first", folder / "second")
    os.symlink("file", folder / "link")
    os.mkfifo(folder / "fifo")
    (folder / "empty").mkdir()
    for name in ("file", "directory"):
        folder.set_attribute(name, "user.restored", b"value")
    if folder.path.name == "special_links":
        for name in ("link", "fifo"):
            os.link(folder / name, folder / f"second {name}", follow_symlinks=False)
    if folder.path.name == "long_names":
        for shorter in range(4):
            folder.write(folder.long_name("f", shorter), "restored")
            (folder / folder.long_name("d", shorter)).mkdir()
            folder.write(f"{folder.long_name('d', shorter)}/{folder.long_name('i', shorter)}", "restored")
    if folder.path.name == "many_names":
        for number in range(_MANY):
            folder.write(f"many/{number}" if number else _made(folder, "many") + "/0", "restored")
    if folder.path.name == "copied_content":
        with (folder / "large").open("wb") as file:
            file.truncate(3_000_000)
            file.seek(1_500_000)
            file.write(os.urandom(70_000))


def _made(folder: Folder, name: str) -> str:
    (folder / name).mkdir()
    return name


def replaced_by_rename(folder: Folder) -> None:
    """A restored file that was replaced by a rename and then deleted stays deleted."""
    folder.replace("file")
    (folder / "file").unlink()
    folder.replace("directory/inner")
    (folder / "directory" / "inner").unlink()


def renamed_over(folder: Folder) -> None:
    """A restored file that another one was renamed over and that was then deleted stays deleted, as does the other."""
    (folder / "other").rename(folder / "file")
    (folder / "file").unlink()


def replaced_again(folder: Folder) -> None:
    """A file that is replaced, deleted and made several times is what was written last."""
    for number in range(3):
        folder.replace("file", f"version {number}")
        (folder / "file").unlink()
        folder.write("file", f"again {number}")
        folder.replace("file", f"at last {number}")
        folder.write("other", f"again {number}")
        (folder / "other").unlink()


def replaced_by_link(folder: Folder) -> None:
    """A restored file in whose place came a link of any kind, and which was then deleted, stays deleted."""
    (folder / "file").unlink()
    os.symlink("other", folder / "file")
    os.symlink("directory", folder / "temporary")
    (folder / "temporary").rename(folder / "file")
    (folder / "file").unlink()
    folder.write("fresh")
    os.link(folder / "fresh", folder / "temporary")
    (folder / "temporary").rename(folder / "other")
    (folder / "other").unlink()
    (folder / "link").rename(folder / "moved link")
    os.symlink("fresh", folder / "link")


def directory_by_file(folder: Folder) -> None:
    """A restored directory that was replaced by a file, and the file by a directory, does not show its old content."""
    shutil.rmtree(folder / "directory")
    folder.write("directory")
    folder.replace("directory")
    (folder / "directory").unlink()
    (folder / "directory").mkdir()
    folder.write("directory/new")
    (folder / "empty").rmdir()
    folder.replace("empty")


def file_by_directory(folder: Folder) -> None:
    """A restored file that was replaced by a directory, and the directory by nothing, does not come back."""
    (folder / "file").unlink()
    (folder / "file").mkdir()
    folder.write("file/inside")
    shutil.rmtree(folder / "file")
    (folder / "other").unlink()
    (folder / "other").mkdir()
    folder.move("other", "moved")


def made_anew(folder: Folder) -> None:
    """A restored directory that was removed and made anew is empty, and so is one in it."""
    shutil.rmtree(folder / "directory")
    (folder / "directory" / "sub").mkdir(parents=True)
    folder.noticed += os.listdir(folder / "directory" / "sub")
    shutil.rmtree(folder / "directory")
    (folder / "directory").mkdir()
    folder.noticed += os.listdir(folder / "directory")
    folder.replace("directory/inner")
    (folder / "directory" / "inner").unlink()


def directory_renamed_over(folder: Folder) -> None:
    """A new directory that is renamed over a restored one, emptied or removed before, shows its own content alone."""
    for name in ("one", "two", "three"):
        folder.write(f"{_made(folder, name)}/new")
    folder.move("one", "empty")
    for path in (folder / "directory" / "sub" / "deep", folder / "directory" / "inner"):
        path.unlink()
    folder.move("two", "directory/sub")
    shutil.rmtree(folder / "directory")
    folder.move("three", "directory")


def renamed_directory(folder: Folder) -> None:
    """A restored directory can be renamed with what was changed in it, and one made in its place is empty."""
    folder.write("directory/sub/deep", "changed")
    folder.write("directory/sub/new")
    folder.move("directory/sub", "moved")
    folder.move("directory", "elsewhere")
    (folder / "directory" / "sub").mkdir(parents=True)
    folder.noticed += os.listdir(folder / "directory" / "sub")
    folder.move("moved", "elsewhere/back")
    folder.move("elsewhere", "again")


def new_links(folder: Folder) -> None:
    """A new hard link to a restored file is the same file, and outlives it."""
    os.link(folder / "file", folder / "hard")
    with (folder / "hard").open("a") as file:
        file.write(" and more")
    folder.noticed.append((folder / "file").read_text())
    (folder / "file").unlink()
    folder.write("fresh")
    os.link(folder / "fresh", folder / "directory" / "fresh")
    folder.write("directory/fresh", "through the other name")
    os.link(folder / "other", folder / "file")
    (folder / "other").unlink()


def restored_links(folder: Folder) -> None:
    """Two restored names of one file show the same content after it was changed through one of them."""
    folder.write("first", "changed through the first name")
    folder.noticed.append((folder / "second").read_text())


def long_names(folder: Folder) -> None:
    """Restored files with the longest names can be changed, renamed and deleted."""
    for shorter in range(4):
        name, moved = folder.long_name("f", shorter), folder.long_name("m", shorter)
        with (folder / name).open("a") as file:
            file.write(" and more")
        (folder / name).rename(folder / moved)
        folder.write(name, "made anew")
        if shorter % 2:
            (folder / name).unlink()
        directory = folder.long_name("d", shorter)
        folder.write(f"{directory}/{folder.long_name('i', shorter)}", "changed")
        folder.write(f"{directory}/{folder.long_name('n', shorter)}")
    shutil.rmtree(folder / folder.long_name("d"))


def many_names(folder: Folder) -> None:
    """A directory that is listed while its files are deleted and replaced shows each name that is left once."""
    with os.scandir(folder / "many") as entries:
        for entry in entries:
            if int(entry.name) % 2:
                os.unlink(entry.path)
    for number in range(0, _MANY, 10):
        folder.replace(f"many/{number}", "changed")
        folder.write(f"many/{_MANY + number}")
    for number in range(0, _MANY, 20):
        (folder / "many" / str(number)).unlink()
    names = os.listdir(folder / "many")
    folder.noticed += [str(len(names)), str(len(set(names)))]


def flagged_renames(folder: Folder) -> None:
    """Renames that exchange two files, or that refuse to replace one, leave what they should after a deletion."""
    folder.write("fresh")
    folder.rename_specially("fresh", "file", _EXCHANGE)
    (folder / "file").unlink()
    (folder / "directory" / "inner").unlink()
    folder.rename_specially("other", "directory/inner", _NOREPLACE)
    (folder / "first").unlink()
    folder.write("fresh")
    folder.rename_specially("fresh", "first", _NOREPLACE)
    (folder / "first").unlink()


def attributes(folder: Folder) -> None:
    """User xattrs, modes, owners and times of restored files can be changed, and stay."""
    for name in ("file", "directory"):
        folder.set_attribute(name, "user.new", b"new" * 100)
        folder.set_attribute(name, "user.restored", b"changed")
    folder.set_attribute("other", "user.first", b"")
    if not folder.noticed:
        os.removexattr(folder / "directory", "user.restored")
    for name in ("file", "directory", "empty", "other"):
        os.chown(folder / name, 1, 2)
        (folder / name).chmod(0o2751)
        os.utime(folder / name, (_TIME_S, _TIME_S))
    os.chown(folder / "link", 1, 2, follow_symlinks=False)
    os.utime(folder / "link", (_TIME_S, _TIME_S), follow_symlinks=False)


def special_files(folder: Folder) -> None:
    """A restored fifo can be changed, renamed and deleted."""
    (folder / "fifo").chmod(0o640)
    (folder / "fifo").rename(folder / "moved fifo")
    os.mkfifo(folder / "fifo")
    (folder / "fifo").unlink()


def special_links(folder: Folder) -> None:
    """A restored symbolic link or fifo that has several names can be renamed and deleted by each."""
    for name in ("link", "fifo"):
        (folder / name).rename(folder / f"moved {name}")
        (folder / f"second {name}").unlink()


def copied_content(folder: Folder) -> None:
    """What was not overwritten of a restored file stays, holes included."""
    with (folder / "large").open("r+b") as file:
        file.seek(1_510_000)
        file.write(b"an island")
    with (folder / "file").open("a") as text:
        text.write(" and more")
    os.truncate(folder / "other", 4)
    os.truncate(folder / "directory" / "inner", 10_000)


def open_files(folder: Folder) -> None:
    """A file that is open stays what it was while its name is replaced and deleted."""
    with (folder / "file").open() as restored, folder.write("fresh", "fresh").open("r+") as fresh:
        folder.replace("file")
        (folder / "file").unlink()
        (folder / "fresh").unlink()
        fresh.seek(0, os.SEEK_END)
        fresh.write(" and more")
        fresh.seek(0)
        folder.noticed += [restored.read(), fresh.read()]


def constant_inodes(folder: Folder) -> None:
    """A restored file keeps its inode number while it is changed, as programs that compare it expect."""
    before = [os.lstat(folder / name).st_ino for name in ("file", "directory")]
    folder.write("file")
    (folder / "directory").chmod(0o700)
    after = [os.lstat(folder / name).st_ino for name in ("file", "directory")]
    folder.noticed.append(str(before == after))


def strange_names(folder: Folder) -> None:
    """Names that look like the signs of an overlay are names as any other."""
    folder.write(".wh.file", "not a sign")
    folder.write("directory/.wh..wh..opq", "nor this")
    folder.write("directory/.wh..opq", "nor this")
    folder.replace(".wh.other")
    os.symlink("(overlay-whiteout)", folder / "sign")


TRIALS: tuple[Callable[[Folder], None], ...] = (
    replaced_by_rename, renamed_over, replaced_again, replaced_by_link, directory_by_file, file_by_directory,
    made_anew, directory_renamed_over, renamed_directory, new_links, restored_links, long_names, many_names,
    flagged_renames, attributes, special_files, special_links, copied_content, open_files, constant_inodes,
    strange_names,
)  # fmt: skip


def look(folder: Path) -> dict[str, object]:
    """Every name of a folder with what a backup of it would hold; times only where a trial has set them."""
    names_of: dict[int, list[str]] = {}
    seen: dict[str, list[object]] = {}
    for directory, below, files in os.walk(folder):
        for name in sorted(below + files):
            path = os.path.join(directory, name)
            place, status = os.path.relpath(path, folder), os.lstat(path)
            regular, link = stat.S_ISREG(status.st_mode), stat.S_ISLNK(status.st_mode)
            if not stat.S_ISDIR(status.st_mode):
                names_of.setdefault(status.st_ino, []).append(place)
            seen[place] = [
                stat.filemode(status.st_mode),
                [status.st_uid, status.st_gid],
                status.st_mtime_ns if status.st_mtime_ns == _TIME_S * 10**9 else None,
                hashlib.sha256(Path(path).read_bytes()).hexdigest() if regular else None,
                os.readlink(path) if link else None,
                [] if link else _xattrs(path),
            ]
    links = sorted(sorted(names) for names in names_of.values() if len(names) > 1)
    return {**seen, "hard links": links}


def _xattrs(path: str) -> list[list[str]]:
    try:
        names = sorted(name for name in os.listxattr(path) if name.startswith("user."))
    except OSError as e:
        if e.errno == errno.ENOTSUP:
            return []
        raise
    return [[name, os.getxattr(path, name).hex()] for name in names]


def main(command: str, root: Path, longest: int) -> None:
    """Seeds, acts or looks; see the module."""
    said: dict[str, object] = {}
    for trial in TRIALS:
        folder = Folder(root / trial.__name__, longest)
        try:
            if command == "seed":
                folder.path.mkdir()
                _seed(folder)
                continue
            if command == "act":
                trial(folder)
            said[trial.__name__] = {"noticed": folder.noticed, "seen": look(folder.path)}
        except OSError as e:
            if command == "seed":
                raise
            place = os.path.relpath(os.fsdecode(e.filename), folder.path) if e.filename else ""
            said[trial.__name__] = {"error": f"{errno.errorcode.get(e.errno or 0, e.errno)} {place}".strip()}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
