"""The directories that are backed up."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from demo import MANIFEST

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Workload:
    """A directory with its name in the report."""

    name: str
    folder: Path

    @property
    def is_empty(self) -> bool:
        """True if nothing is in the directory."""
        return not any(self.folder.iterdir())

    @property
    def description(self) -> str:
        """Number of files, and their bytes in MB."""
        sizes = [path.lstat().st_size for path in self.folder.rglob("*") if path.is_file()]
        return f"{len(sizes):,} files, {sum(sizes) / 1e6:.0f} MB"


def workloads(folder: Path, *, quick: bool, only: str | None = None) -> Iterator[Workload]:
    """Makes one directory after the other below `folder`; with `only`, just the one of that name.

    With `quick`, they are about ten times smaller.
    """
    makers: dict[str, Callable[[Path], None]] = {
        "Python environment": lambda to: python_environment(to, files=3_000 if quick else 33_000),
        "random bytes": lambda to: random_bytes(to, size_mib=50 if quick else 500),
        "small files": lambda to: small_files(to, count=8_000 if quick else 50_000),
        "git repository": lambda to: git_repository(to, files=1_000 if quick else 5_000, commits=50 if quick else 500),
        "empty directory": lambda to: None,
    }
    for name, make in makers.items():
        if only not in (None, name):
            continue
        made = folder / name.replace(" ", "-")
        made.mkdir()
        make(made)
        yield Workload(name, made)


def python_environment(folder: Path, *, files: int) -> None:
    """Copies files of the Python environment in which this runs."""
    source = Path(next(path for path in sys.path if path.endswith("site-packages")))
    copied = 0
    for where, folders, names in os.walk(source):
        folders.sort()
        to = folder / Path(where).relative_to(source)
        to.mkdir(exist_ok=True)
        for name in sorted(names):
            shutil.copy2(Path(where) / name, to / name, follow_symlinks=False)
            copied += 1
            if copied == files:
                return


def random_bytes(folder: Path, *, size_mib: int) -> None:
    """Writes one file that cannot be compressed, and some small ones that can be deleted."""
    with (folder / "random").open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(MIB))
    small_files(folder, count=50)


def small_files(folder: Path, *, count: int) -> None:
    """Writes files of 1 KiB, a thousand in a directory."""
    for number in range(count):
        where = folder / f"{number // 1000:03}"
        where.mkdir(exist_ok=True)
        (where / f"{number:06}").write_bytes(os.urandom(1024))


def git_repository(folder: Path, *, files: int, commits: int) -> None:
    """Makes a repository in which each commit rewrites five files of 4 KB; git halves their size."""
    stream = []
    for number in range(commits):
        stream.append(f"commit refs/heads/main\ncommitter A <a@example.com> {1_700_000_000 + number} +0000\n")
        stream.append("data 6\nchange\n")
        for file in range(files) if number == 0 else random.sample(range(files), 5):
            text = "".join(f"{os.urandom(32).hex()}\n" for _ in range(64))
            stream.append(f"M 100644 inline src/{file % 50}/{file}.txt\ndata {len(text)}\n{text}\n")
    for command in (["init", "--quiet", "--initial-branch=main"], ["fast-import", "--quiet"], ["checkout", "--force"]):
        given = "".join(stream).encode() if "fast-import" in command else None
        subprocess.run(["git", "-C", folder, *command], input=given, check=True, capture_output=True)


def change(folder: Path) -> None:
    """Changes 1 MB in a directory and deletes a file, as between two checkpoints."""
    subprocess.run(["sh", "-ec", CHANGE], cwd=folder, check=True, capture_output=True)


CHANGE = """\
rm -- "$(find . -type f -size -64k ! -name changed -print -quit)"
head -c 1000000 /dev/urandom > changed
"""


def manifest(folder: Path) -> str:
    """The digest of all files of a directory, and their number."""
    said = subprocess.run(["sh", "-ec", MANIFEST], cwd=folder, check=True, capture_output=True, text=True)
    return said.stdout.strip()
