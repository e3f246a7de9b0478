"""git itself, as the reference for the rules of `gitignore`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from actors.node.survey import Limits, survey
from actors.node.tree import Tree
from tests.support.sandboxes import UID

LIMITS = Limits(inodes=200_000, source_bytes=2**30, hole_bytes=2**30, depth=300)


@dataclass(frozen=True)
class Git:
    """A sandbox's tree with git in it, with a minimal configuration."""

    tree: Tree
    home: Path

    @classmethod
    def at(cls, folder: Path) -> Git:
        """Makes the tree in an empty folder."""
        tree = Tree(folder / "root", tops=("/workspace", "/home"), uid=UID)
        tree.prepare()
        home = folder / "home"
        home.mkdir()
        (home / ".gitconfig").write_text(
            '[safe]\n directory = *\n[user]\n name = n\n email = n@example.org\n[protocol "file"]\n allow = always\n'
            "[init]\n defaultBranch = main\n"
        )
        return cls(tree, home)

    @property
    def work(self) -> Path:
        """The folder of /workspace on the node."""
        return self.tree.root / "workspace"

    def __call__(self, *argv: str, cwd: Path | None = None, stdin: bytes = b"") -> bytes:
        """Runs a git command in the work tree or in `cwd`; returns its standard output."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
        done = subprocess.run(
            ["git", *argv], cwd=cwd or self.work, input=stdin, env=environment, capture_output=True, check=False
        )
        assert done.returncode in ((0, 1) if argv[0] == "check-ignore" else (0,)), (argv, done.stderr)
        return done.stdout

    def kept(self, repository: Path | None = None, flags: Iterable[str] = ()) -> set[str]:
        """The existing files of a repository that git tracks or does not ignore, relative to it."""
        top = repository or self.work
        said = self("ls-files", "-z", "--cached", "--others", "--exclude-standard", *flags, cwd=top)
        paths = {os.fsdecode(path) for path in said.split(b"\0") if path}
        return {path for path in paths if os.path.lexists(top / path) and not _is_directory(top / path)}

    def backed_up(self, directory: str = "/workspace", excludes: Iterable[str] = ()) -> set[str]:
        """The files that a backup of a directory with `gitignore` would hold, relative to it."""
        with self.tree.directory(directory) as fd:
            found = survey(fd, limits=LIMITS, excludes=list(excludes), gitignore=self.tree)
        dropped = {os.fsdecode(path) for path in found.excluded}
        return _files(self.tree.root / directory.lstrip("/"), "", dropped)


def without_git(paths: Iterable[str]) -> set[str]:
    """The paths outside of `.git`."""
    return {path for path in paths if ".git" not in path.split("/")}


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _files(top: Path, below: str, dropped: set[str]) -> set[str]:
    found = set()
    for entry in os.scandir(top):
        path = below + entry.name
        if path in dropped:
            continue
        if entry.is_dir(follow_symlinks=False):
            found |= _files(Path(entry.path), path + "/", dropped)
        else:
            found.add(path)
    return found
