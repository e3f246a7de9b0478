from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.rpc import readable_process
from actors.rpc.readable_process import in_readable_folder, readable_title


@pytest.mark.parametrize("name", ["plain", "caf\udce9"])
def test_the_process_leaves_its_working_directory_only_if_the_name_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    with in_readable_folder():
        assert Path.cwd() == (folder if name == "plain" else Path("/"))
    assert Path.cwd() == folder


def test_the_process_leaves_a_deleted_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with in_readable_folder():
        assert Path.cwd() == Path("/")
    with pytest.raises(FileNotFoundError):
        os.getcwd()


def test_a_command_line_is_rewritten_only_if_it_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cmdline"
    monkeypatch.setattr(readable_process, "COMMAND_LINE", file)
    file.write_bytes("holdfast\0ls\0café\0".encode())
    assert readable_title() is None
    file.write_bytes(b"holdfast\0ls\0caf\xe9\0")
    assert readable_title() == "holdfast ls caf\\xe9"
