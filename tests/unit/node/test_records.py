"""The node's records, kept in two files: after damage to one file the value is still right; after more, an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.node.errors import CorruptRecordError
from actors.node.identity import identity
from actors.node.records import TwinFile, sealed, unsealed
from actors.node.removal import remove_tree
from tests.support.damage import by_directory, flip, flipped

VALUE = {"version": 1, "dir": "/workspace"}
TEXT = json.dumps(VALUE, separators=(",", ":"))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00" * 30),
    "one flipped bit": flip,
    "missing": remove_tree,
    "a directory": by_directory,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "record.json"


@pytest.fixture
def twin(file: Path) -> TwinFile[Any]:
    def parse(data: bytes) -> Any:
        value = json.loads(data)
        if value.keys() != VALUE.keys():
            raise ValueError("other fields")
        return value

    made = TwinFile(file, parse)
    made.write(TEXT)
    return made


def test_a_record_is_read_as_it_was_written_and_is_plain_json(twin: TwinFile[Any], file: Path) -> None:
    assert twin.read() == (VALUE, True)
    assert json.loads(file.read_text()).items() >= VALUE.items()


@pytest.mark.parametrize("which", ["record.json", "record.json.copy"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_record_with_one_damaged_file_is_read_right_and_mended_by_a_write(
    twin: TwinFile[Any], tmp_path: Path, damage: str, which: str
) -> None:
    DAMAGE[damage](tmp_path / which)
    assert twin.exists
    assert twin.read() == (VALUE, False)
    twin.write(TEXT)
    assert twin.read() == (VALUE, True)


def test_a_record_with_two_damaged_files_is_an_error(twin: TwinFile[Any], tmp_path: Path) -> None:
    for name in ("record.json", "record.json.copy"):
        flip(tmp_path / name)
    with pytest.raises(CorruptRecordError) as raised:
        twin.read()
    assert raised.value.hint


def test_two_missing_files_are_no_record(tmp_path: Path) -> None:
    twin = TwinFile(tmp_path / "none.json", json.loads)
    assert not twin.exists
    assert twin.read() == (None, True)


def test_a_record_without_a_checksum_is_read(twin: TwinFile[Any], tmp_path: Path) -> None:
    for name in ("record.json", "record.json.copy"):
        (tmp_path / name).write_text(TEXT)
    assert twin.read() == (VALUE, True)


def test_no_flipped_bit_of_a_record_changes_its_value(twin: TwinFile[Any], file: Path) -> None:
    (file.parent / "record.json.copy").unlink()
    for data in flipped(file.read_bytes()):
        file.write_bytes(data)
        try:
            assert twin.read()[0] == VALUE
        except CorruptRecordError:
            continue


def test_unsealing_returns_the_sealed_text() -> None:
    assert unsealed(sealed(TEXT)) == TEXT.encode()


# --- the identity


@pytest.mark.parametrize("which", ["node/id", "node.id"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_an_identity_with_one_damaged_file_stays_the_same_and_is_mended(
    tmp_path: Path, damage: str, which: str
) -> None:
    made = identity(tmp_path / "node")
    DAMAGE[damage](tmp_path / which)
    assert identity(tmp_path / "node") == made
    assert (tmp_path / "node" / "id").read_text() == made
    (tmp_path / ("node/id" if which == "node.id" else "node.id")).unlink()
    assert identity(tmp_path / "node") == made, "both had been right again"


def test_no_flipped_bit_of_an_identity_makes_another_node(tmp_path: Path) -> None:
    node = tmp_path / "node"
    made = identity(node)
    for position in range(len(made)):
        for bit in range(8):
            data = bytearray(made.encode())
            data[position] ^= 1 << bit
            (node / "id").write_bytes(data)
            assert identity(node) == made


@pytest.mark.parametrize("damage", [b"", b"\xff" * 32, b"two\nlines", b"x" * 5000])
def test_an_identity_with_two_damaged_files_is_an_error_and_no_new_node(tmp_path: Path, damage: bytes) -> None:
    identity(tmp_path / "node")
    for name in ("node/id", "node.id"):
        (tmp_path / name).write_bytes(damage)
    for _ in range(2):
        with pytest.raises(CorruptRecordError) as raised:
            identity(tmp_path / "node")
        assert raised.value.hint


def test_an_identity_that_the_operator_chose_is_kept(tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.mkdir()
    for name in ("one", "another name"):
        (node / "id").write_text(f"{name}\n")
        assert identity(node) == name
