"""A work tree in which git works, backed up after each of many commands: each backup restores to what it was then.

`make soak` makes a longer chain of backups.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from actors.models import DirectoryBackup
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from storage.config import BucketConfig
from storage.metadata import BackupRecord
from tests.support.layered import gc, needed
from tests.support.mount_leaks import nothing_leaks
from tests.support.sandboxes import Node, backup, restore, run, sh
from tests.support.trees import Entry, fingerprint

BACKUPS = int(os.environ.get("HOLDFAST_TEST_GIT_BACKUPS") or 12)
SEED = int(os.environ.get("SOAK_SEED") or 1)
TREE = "/workspace/repository"
_BEGIN = f"""
set -e
git config --global user.name n; git config --global user.email n@example.org; git config --global gc.auto 0
git config --global init.defaultBranch main; git config --global advice.detachedHead false
git init -q {TREE}; cd {TREE}
head -c 2000000 /dev/urandom > data; echo data > .gitignore
mkdir -p src/deep docs; for n in $(seq 40); do echo "$n" > src/file$n; echo "$n $n" > src/deep/file$n; done
ln -s ../src docs/link; printf '#!/bin/sh\\n' > run; chmod 755 run; git add .; git commit -qm first
git commit -qm second --allow-empty
"""
_COMMANDS = (
    "for n in 3 14 15 9; do echo {number} >> src/file$n; done; git commit -qam 'commit {number}'",
    "echo {number} > docs/new{number}; mkdir -p src/dir{number}; echo x > src/dir{number}/x; git add .;"
    " git commit -qm 'add {number}'",
    "git checkout -q -B branch{half} HEAD~1; echo {number} > docs/branch; git add .; git commit -qm 'branch {number}'",
    "git checkout -q main; git merge -qm 'merge {number}' -X ours $(git branch --format '%(refname:short)' | head -1)",
    "git mv src/deep src/deep{number} 2>/dev/null || git mv src/deep* src/deep; git commit -qm 'rename {number}'",
    "git rm -q --ignore-unmatch src/file{number} src/deep*/file{number}; git commit -qm 'remove {number}'",
    "git checkout -q HEAD~1; git checkout -q main",
    "git gc -q --prune=now",
    "git repack -q -a -d; git pack-refs --all",
    "echo {number} >> run; git stash -q; git stash pop -q; git commit -qam 'stashed {number}'",
    "git tag v{number}; git reset -q --hard HEAD~1; git clean -qfdx -e data",
    "git worktree add -q trees/{number} v{number} 2>/dev/null || git worktree add -q --detach trees/{number} main",
)

Content = dict[bytes, Entry]


class Chain:
    """Backups of one work tree, and what each has to hold."""

    def __init__(self, node: Node, files: Literal["overlay", "plain"]) -> None:
        self.node, self.files = node, files
        self.box = node.sandbox("git")
        self.others = node.keys()
        self.made: dict[str, tuple[Content, str]] = {}
        sh(self.box, _BEGIN)
        self.back_up()

    def content(self, node: Node, box: LocalSandbox, place: str) -> tuple[Content, str]:
        """The tree, and what git says of it."""
        found = fingerprint(node.tree(box) / place.lstrip("/"))
        return found, sh(box, "git --no-optional-locks status --porcelain; git log --all --format=%H", cwd=place)

    def back_up(self) -> None:
        sh(self.box, "git fsck --strict --no-dangling", cwd=TREE)
        expected = self.content(self.node, self.box, TREE)
        made = backup(self.box, TREE)
        self.made[made.id] = expected
        if self.files == "overlay":
            restore(self.box, made)

    def act(self, command: str, number: int) -> None:
        """Runs a command. It may fail, as some make no sense in some states; the repository is whole in any case."""
        run(self.box, "sh", "-c", command.format(number=number, half=number // 2), cwd=TREE)

    def records(self) -> list[BackupRecord]:
        return [self.node.catalog().get("default", backup_id) for backup_id in self.made]

    def check(self, node: Node, box: LocalSandbox) -> None:
        """Restores every backup, and compares it with what it was made of."""
        for number, (backup_id, expected) in enumerate(self.made.items()):
            mode = ("overlay", "copy")[number % 2]
            restore(box, DirectoryBackup(id=backup_id, dir=TREE), TREE, mode)
            assert self.content(node, box, TREE) == expected
            sh(box, "git fsck --strict --no-dangling", cwd=TREE)


@pytest.fixture
def nodes(tmp_path: Path, bucket: BucketConfig, best_driver: Driver) -> Iterator[tuple[Node, Node]]:
    with (
        nothing_leaks(tmp_path),
        Node(tmp_path / "a", bucket, best_driver) as a,
        Node(tmp_path / "b", bucket, best_driver, identity="b") as b,
    ):
        yield a.alone_in_the_bucket(), b


@pytest.mark.timeout(300 + 30 * BACKUPS)
@pytest.mark.parametrize("files", ["overlay", "plain"])
def test_each_backup_of_a_work_tree_of_git_restores_to_what_it_was(
    nodes: tuple[Node, Node], files: Literal["overlay", "plain"]
) -> None:
    (node, other), rng = nodes, random.Random(SEED)
    chain = Chain(node, files)
    commands: list[str] = []
    while len(commands) < BACKUPS:
        commands += rng.sample(_COMMANDS, len(_COMMANDS))
    for number, command in enumerate(commands[:BACKUPS], start=1):
        chain.act(command, number)
        chain.back_up()
    assert sum(record.is_incremental for record in chain.records()) > BACKUPS * 0.7
    elsewhere = other.sandbox("elsewhere")
    chain.check(other, elsewhere)
    for backup_id in rng.sample(list(chain.made), len(chain.made) // 2):
        node.catalog().delete("default", backup_id)
        del chain.made[backup_id]
    gc(node)
    left = {key for key in node.keys() - chain.others if not key.endswith("/state.json")}
    assert left == needed(chain.records())
    with Node(other.data_dir.parent / "c", node.bucket, other.driver, identity="c") as fresh:
        chain.check(fresh, fresh.sandbox("fresh"))
