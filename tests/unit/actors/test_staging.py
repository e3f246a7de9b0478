"""The stage of a restore by copy: nothing of it is left after the restore, or after a crash and the next wake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.node.tree import Tree, temporary_name
from actors.sandbox.staging import Staging


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "workspace" / "data").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "stage"


@pytest.fixture
def staging(root: Path, note: Path) -> Staging:
    return Staging(note, Tree(root, tops=("/workspace",), uid=os.getuid()))


def test_a_stage_is_beside_its_directory_and_removed_after_the_block(staging: Staging, root: Path, note: Path) -> None:
    with staging.beside("/workspace/data") as stage:
        assert stage.parent == (root / "workspace").resolve()
        (stage / "inner").mkdir(parents=True)
        assert note.exists()
    assert os.listdir(root / "workspace") == ["data"]
    assert not note.exists()


def test_a_stage_of_a_crashed_restore_is_removed_by_its_note(staging: Staging, root: Path, note: Path) -> None:
    name = temporary_name()
    (root / "workspace" / name / "inner").mkdir(parents=True)
    note.write_text(f"/workspace/{name}")
    staging.remove()
    staging.remove()
    assert os.listdir(root / "workspace") == ["data"]
    assert not note.exists()


@pytest.mark.parametrize("text", ["", "/workspace", "/workspace/data", "/workspace/data/"])
def test_a_note_that_names_no_stage_removes_nothing(staging: Staging, root: Path, note: Path, text: str) -> None:
    note.write_text(text)
    staging.remove()
    assert os.listdir(root / "workspace") == ["data"]
    assert not note.exists()


def test_a_note_stays_while_its_stage_cannot_be_reached(staging: Staging, note: Path) -> None:
    note.write_text(f"/workspace/gone/{temporary_name()}")
    staging.remove()
    assert note.exists()
