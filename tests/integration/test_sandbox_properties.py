"""Random trees: a backup restored as an overlay or as a copy equals the tree, and so does a backup of that."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.node.drivers import Driver, Limit
from tests.support.sandboxes import Node, backup, restore
from tests.support.trees import fingerprint

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 0x2F} & set(name) and name not in (b".", b".."))
HOSTILE = st.sampled_from([b"x" * 251, b"-e", b"*", b"\n", b" ", b"\\", b"#", b"...", b"\xff", b"a b\n", b"[", b"!"])
MODES = st.sampled_from([0, 0o400, 0o644, 0o755, 0o4755, 0o2750, 0o1777, 0o7777])
FILES = st.tuples(st.just("file"), st.binary(max_size=3000), MODES, st.none() | st.binary(min_size=1, max_size=50))
OTHERS = st.one_of(
    st.tuples(st.just("link"), st.binary(min_size=1, max_size=200).filter(lambda target: 0 not in target)),
    st.tuples(st.just("fifo"), MODES),
    st.tuples(st.just("sparse"), st.integers(1, 5_000_000)),
    st.tuples(st.just("hard"), st.integers(0, 5)),
)
TREES = st.recursive(
    st.dictionaries(NAMES | HOSTILE, FILES | OTHERS, max_size=5),
    lambda below: st.dictionaries(NAMES | HOSTILE, FILES | OTHERS | st.tuples(st.just("folder"), below, MODES)),
    max_leaves=12,
)


def make(path: bytes, tree: dict[bytes, tuple[object, ...]], linkable: list[bytes], owner: int) -> None:
    """`linkable` are the names so far that can be hard-linked: all but those of directories."""
    for name, (kind, *rest) in tree.items():
        place = os.path.join(path, name)
        match kind, rest:
            case "file", [bytes() as data, int() as mode, attribute]:
                Path(os.fsdecode(place)).write_bytes(data)
                if isinstance(attribute, bytes):
                    os.setxattr(place, "user.x", attribute)
            case "link", [bytes() as target]:
                os.symlink(target, place)
            case "fifo", [int() as mode]:
                os.mkfifo(place)
            case "sparse", [int() as size]:
                with open(place, "wb") as file:
                    file.truncate(size)
            case "hard", [int() as which]:
                if linkable:
                    os.link(linkable[which % len(linkable)], place, follow_symlinks=False)
            case "folder", [dict() as below, int() as mode]:
                os.mkdir(place)
                make(place, below, linkable, owner)
        if os.path.lexists(place):
            os.chown(place, owner, owner, follow_symlinks=False)
            if kind != "folder":
                linkable.append(place)
            if kind in ("file", "fifo", "folder"):
                os.chmod(place, mode)


def change(root: Path, driver: Driver) -> None:
    """Writes to some of the files, by one of their names, and adds a name to some other inodes."""
    most_names = 1 if Limit.SPECIAL_LINKS in driver.limits else 2**16
    for number, (name, entry) in enumerate(sorted(fingerprint(root).items())):
        place = os.path.join(os.fsencode(root), name)
        if stat.S_ISREG(entry.kind) and number % 2:
            with open(place, "ab") as file:
                file.write(b"more")
        elif stat.S_ISLNK(entry.kind) and len(os.path.basename(place)) < 200:
            if os.lstat(place).st_nlink > most_names:
                with pytest.raises(PermissionError):
                    os.unlink(place)
                continue
            os.link(place, place + b" again", follow_symlinks=False)


# fuse-overlayfs crashes on some of these trees.
@pytest.mark.parametrize("driver", [driver for driver in Driver if driver is not Driver.FUSE], indirect=True)
@pytest.mark.timeout(600)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(tree=TREES)
def test_any_tree_comes_back_from_its_backup(node: Node, tree: dict[bytes, tuple[object, ...]]) -> None:
    box = node.sandbox("properties")
    root = node.tree(box) / "workspace" / "tree"
    root.mkdir()
    os.chown(root, node.owner(box), node.owner(box))
    try:
        make(os.fsencode(root), tree, [], node.owner(box))
        expected = fingerprint(root)
        handle = backup(box, "/workspace/tree")
        for mode in ("overlay", "copy"):
            restore(box, handle, f"/workspace/{mode}", mode)
            assert fingerprint(node.tree(box) / "workspace" / mode) == expected
        change(node.tree(box) / "workspace" / "overlay", node.driver)
        expected = fingerprint(node.tree(box) / "workspace" / "overlay")
        restore(box, backup(box, "/workspace/overlay"), "/workspace/copy", "copy")
        assert fingerprint(node.tree(box) / "workspace" / "copy") == expected
    finally:
        box.destroy()
        shutil.rmtree(root, ignore_errors=True)
