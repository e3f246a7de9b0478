"""Whatever a tree holds: a backup restored, as an overlay or as a copy, is that tree."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.node import driver_choice, mounting
from storage.config import BucketConfig
from tests.support.mount_leaks import nothing_leaks
from tests.support.sandboxes import UID, Node, backup, restore
from tests.support.trees import fingerprint

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 0x2F} & set(name) and name not in (b".", b".."))
HOSTILE = st.sampled_from([b"x" * 255, b"-e", b"*", b"\n", b" ", b"\\", b"#", b"...", b"\xff", b"a b\n", b"[", b"!"])
MODES = st.sampled_from([0, 0o400, 0o644, 0o755, 0o4755, 0o2750, 0o1777, 0o7777])
FILES = st.tuples(st.just("file"), st.binary(max_size=3000), MODES, st.none() | st.binary(max_size=50))
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


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, bucket: BucketConfig) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("properties")
    with nothing_leaks(folder):
        with Node(folder / "data", bucket, driver_choice.choose("auto", folder / "probe")) as made:
            yield made
        mounting.sweep(folder)


def make(path: bytes, tree: dict[bytes, tuple[object, ...]], files: list[bytes]) -> None:
    for name, (kind, *rest) in tree.items():
        place = os.path.join(path, name)
        match kind, rest:
            case "file", [bytes() as data, int() as mode, attribute]:
                Path(os.fsdecode(place)).write_bytes(data)
                if isinstance(attribute, bytes):
                    os.setxattr(place, "user.x", attribute)
                files.append(place)
            case "link", [bytes() as target]:
                os.symlink(target, place)
            case "fifo", [int() as mode]:
                os.mkfifo(place)
            case "sparse", [int() as size]:
                with open(place, "wb") as file:
                    file.truncate(size)
            case "hard", [int() as which]:
                if files:
                    os.link(files[which % len(files)], place)
            case "folder", [dict() as below, int() as mode]:
                os.mkdir(place)
                make(place, below, files)
        if os.path.lexists(place):
            os.chown(place, UID, UID, follow_symlinks=False)
            if kind in ("file", "fifo", "folder"):
                os.chmod(place, mode)


@pytest.mark.timeout(600)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_any_tree_comes_back(node: Node, tree: dict[bytes, tuple[object, ...]]) -> None:
    box = node.sandbox("properties")
    root = node.tree(box) / "workspace" / "tree"
    root.mkdir()
    os.chown(root, UID, UID)
    try:
        make(os.fsencode(root), tree, [])
        expected = fingerprint(root)
        handle = backup(box, "/workspace/tree")
        for mode in ("overlay", "copy"):
            restore(box, handle, f"/workspace/{mode}", mode)
            assert fingerprint(node.tree(box) / "workspace" / mode) == expected
    finally:
        box.destroy()
        shutil.rmtree(root, ignore_errors=True)
