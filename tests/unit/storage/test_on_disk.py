from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.on_disk import size_on_disk


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "bucket"
    (folder / "folder").mkdir(parents=True)
    (folder / "folder" / "file").write_bytes(b"xyz")
    (tmp_path / "outside").write_bytes(b"x")
    (folder / "link").symlink_to("folder/file")
    os.mkfifo(folder / "pipe")
    return folder


def test_a_file_tells_the_size_of_its_object(bucket: Path) -> None:
    assert size_on_disk(bucket, "folder/file") == 3


@pytest.mark.parametrize(
    "key",
    [
        "", "none", "folder", "folder/", "folder//file", "./folder/file", "folder/../folder/file", "../outside",
        "folder/file/below", "link", "pipe", "nul\0", "x" * 300,
    ],
)  # fmt: skip
def test_what_is_no_object_for_certain_tells_nothing(bucket: Path, key: str) -> None:
    assert size_on_disk(bucket, key) is None


def test_a_missing_folder_tells_nothing(tmp_path: Path) -> None:
    assert size_on_disk(tmp_path / "none", "key") is None
