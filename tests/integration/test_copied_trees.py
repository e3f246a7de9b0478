"""Trees with every kind of file, copied between a sandbox and a machine like the command line does."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.trees import pack, unpack
from tests.support.trees import kinds_and_content, make_interesting_tree


@pytest.mark.parametrize("piece_bytes", [511, 100_000])
def test_an_interesting_tree_comes_back_as_it_was(tmp_path: Path, piece_bytes: int) -> None:
    source, target, sent = tmp_path / "source", tmp_path / "target", bytearray()
    make_interesting_tree(source, 0)
    pack(source, "renamed", sent.extend)
    unpack((bytes(sent[i : i + piece_bytes]) for i in range(0, len(sent), piece_bytes)), target)
    assert kinds_and_content(target) == kinds_and_content(source)
