"""Directories as tar archives: hostile archives are refused, and honest trees come back unchanged."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from actors.errors import InvalidRequestError
from gateway.cli.trees import pack, unpack
from tests.support.trees import kinds_and_content

Member = tuple[str, bytes, str]
"""A member's name, type and link name."""


def archive(*members: Member, content: bytes = b"content") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        for name, kind, link in members:
            row = tarfile.TarInfo(name)
            row.type, row.linkname, row.mode = kind, link, 0o755
            row.size = len(content) if kind == tarfile.REGTYPE else 0
            file.addfile(row, io.BytesIO(content) if row.size else None)
    return made.getvalue()


FOLDER: Member = ("d", tarfile.DIRTYPE, "")
HOSTILE: dict[str, tuple[Member, ...]] = {
    "above": (("../f", tarfile.REGTYPE, ""),),
    "above, from inside": (FOLDER, ("d/../../f", tarfile.REGTYPE, "")),
    "absolute": (("/tmp/f", tarfile.REGTYPE, ""),),
    "through a link": (FOLDER, ("d/l", tarfile.SYMTYPE, "{outside}"), ("d/l/f", tarfile.REGTYPE, "")),
    "through two links": (
        FOLDER,
        ("d/l", tarfile.SYMTYPE, "{outside}"),
        ("d/m", tarfile.SYMTYPE, "l"),
        ("d/m/f", tarfile.REGTYPE, ""),
    ),
    "over a link": (FOLDER, ("d/l", tarfile.SYMTYPE, "{outside}/f"), ("d/l", tarfile.REGTYPE, "")),
    "a hard link to outside": (FOLDER, ("d/l", tarfile.LNKTYPE, "../../secret")),
    "a hard link through a link": (
        FOLDER,
        ("d/l", tarfile.SYMTYPE, "{outside}"),
        ("d/m", tarfile.LNKTYPE, "d/l/secret"),
    ),
    "a link in the place of the directory": (("d", tarfile.SYMTYPE, "{outside}"),),
    "a file": (("d", tarfile.REGTYPE, ""),),
    "two directories": (FOLDER, ("e", tarfile.DIRTYPE, "")),
    "nothing": (),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_leaves_nothing_anywhere(tmp_path: Path, case: str) -> None:
    outside, here = tmp_path / "outside", tmp_path / "here"
    outside.mkdir()
    here.mkdir()
    (outside / "secret").write_text("secret")
    members = [(name, kind, link.format(outside=outside)) for name, kind, link in HOSTILE[case]]
    with pytest.raises((InvalidRequestError, OSError)):
        unpack([archive(*members)], here / "target")
    assert list(here.iterdir()) == []
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").stat().st_nlink == 1


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1300])
def test_a_truncated_archive_leaves_nothing(tmp_path: Path, cut: int) -> None:
    whole = archive(FOLDER, ("d/f", tarfile.REGTYPE, ""), content=bytes(1000))
    with pytest.raises(InvalidRequestError):
        unpack([whole[:cut]], tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_devices_are_left_out_and_listed(tmp_path: Path) -> None:
    copied = unpack([archive(FOLDER, ("d/c", tarfile.CHRTYPE, ""), ("d/f", tarfile.REGTYPE, ""))], tmp_path / "target")
    assert copied.left_out == ["d/c"]
    assert os.listdir(tmp_path / "target") == ["f"]


@pytest.mark.parametrize("piece_bytes", [1, 511, 100_000])
def test_a_tree_survives_packing_and_unpacking(tmp_path: Path, piece_bytes: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_small_tree(source)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
        sent = bytearray()
        assert pack(source, "renamed", sent.extend).left_out == ["socket"]
    (source / "socket").unlink()
    unpack((bytes(sent[i : i + piece_bytes]) for i in range(0, len(sent), piece_bytes)), target)
    assert kinds_and_content(target) == kinds_and_content(source)


def make_small_tree(path: Path) -> None:
    (path / "a" / "b").mkdir(parents=True)
    (path / "a" / "b" / "file").write_bytes(bytes(3000))
    (path / "a" / "b" / "file").chmod(0o640)
    (path / "link").symlink_to("/nowhere")
    os.link(path / "a" / "b" / "file", path / "hard")
    (path / "a").chmod(0o550)
    path.chmod(0o700)
