"""A file that cannot be staged means that no layer can be made, and is no error of the directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.node.errors import NoLayerError
from actors.node.staged import Stage, StagedDirectory


def test_a_path_that_is_too_long_for_the_stage_means_a_full_backup(tmp_path: Path) -> None:
    directory = StagedDirectory(Stage(tmp_path / "stage", os.getuid(), 1000, lambda: None))
    for _ in range(20):
        directory = directory.below("x" * 250)
    with pytest.raises(NoLayerError, match="ENAMETOOLONG"):
        directory.make()
