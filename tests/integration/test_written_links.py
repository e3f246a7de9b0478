"""A write through symbolic links, compared with a shell's write in the same tree."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.errors import HoldfastError
from actors.sandbox.facade import LocalSandbox
from tests.support.sandboxes import Node, run, sh, write
from tests.support.trees import Entry, fingerprint

FOLDERS = ("", "f", "f/g", "a folder")
NAMES = ("a", "b", "c", "l", "m", "n")
WAYS = ("", "", "./", "../", "../../", "../../../", "/workspace/", "//workspace//", "/workspace/f/", "f/", "g/",
        "a folder/", "f/../", "../workspace/", "/workspace/none/", "/etc/", "/tmp/", "/home/../tmp/")  # fmt: skip
ENDS = (*NAMES, "new", "f", "g", "..", ".", "a/", "new/", "g/")


def random_links(root: Path, rng: random.Random) -> None:
    for folder in FOLDERS:
        (root / folder).mkdir(exist_ok=True)
        for name in rng.sample(NAMES, 4):
            if rng.random() < 0.3:
                (root / folder / name).write_bytes(b"old")
            else:
                (root / folder / name).symlink_to(rng.choice(WAYS) + rng.choice(ENDS))
    subprocess.run(["chown", "-hR", f"--reference={root}", root], check=True)


def places(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        inside = os.path.join("/workspace", os.path.relpath(folder, root))
        for name in (*folders, *files, "fresh"):
            yield os.path.normpath(f"{inside}/{name}")
            if name in folders and os.path.islink(os.path.join(folder, name)):
                yield os.path.normpath(f"{inside}/{name}") + "/through"


def content(node: Node, box: LocalSandbox) -> dict[str, dict[bytes, Entry]]:
    """The content of the tree, without times."""
    return {
        top: {name: replace(entry, mtime_s=0) for name, entry in fingerprint(node.tree(box) / top).items()}
        for top in ("workspace", "tmp", "home")
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_write_has_the_same_target_as_a_shells_or_changes_nothing_else(kernel_node: Node, seed: int) -> None:
    ours, shells = kernel_node.sandbox("ours"), kernel_node.sandbox("shells")
    both, rng = (ours, shells), random.Random(seed)
    start = rng.random()
    for box in both:
        random_links(kernel_node.tree(box) / "workspace", random.Random(start))
    went = set()
    for number, place in enumerate(sorted(places(kernel_node.tree(ours) / "workspace"))):
        before = content(kernel_node, ours)
        by_shell = run(shells, "sh", "-c", 'printf %s "$1" > "$0"', place, f"{number}").exit_code == 0
        try:
            write(ours, place, f"{number}")
            by_us = True
        except HoldfastError:
            by_us = False
            assert content(kernel_node, ours) == before, place
        went.add((by_shell, by_us))
        if by_shell:
            assert by_us and content(kernel_node, ours) == content(kernel_node, shells), place
        elif by_us:  # only a link that leads outside or nowhere was replaced
            after = content(kernel_node, ours)
            inside = os.fsencode(os.path.relpath(place, "/workspace"))
            changed = {name for name, entry in after["workspace"].items() if before["workspace"].get(name) != entry}
            assert inside in changed and {**after, "workspace": {}} == {**before, "workspace": {}}, place
            for box in both:
                sh(box, "rm -rf /workspace/* /tmp/*")
                random_links(kernel_node.tree(box) / "workspace", random.Random(start))
    assert went >= {(True, True), (False, False), (False, True)}
