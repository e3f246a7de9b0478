"""Each way in which `holdfast serve` fails to start: a sentence, a hint, exit status 1, and nothing left behind."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.embedded.secrets import MachineSecrets
from tests.support.full_disk import filled, tmpfs
from tests.support.service import PROGRAMS, Refused, nothing_left, refused


def refusal_of(tmp_path: Path, data_dir: Path, *, env: dict[str, str] | None = None, before: Sequence[str] = ()) -> str:
    """Returns the output of a `serve` that is expected to fail; checks that it fails cleanly."""
    attempt: Refused = refused(tmp_path / "home", data_dir, env=env, before=before)
    said = attempt.stderr
    assert attempt.status == 1, said
    assert attempt.stdout == ""
    assert "Traceback" not in said
    *others, error, hint = said.splitlines()
    assert (error.partition(":")[0], hint.partition(":")[0]) == ("error", "hint"), said
    assert max(len(error), len(hint)) < 700
    assert [line for line in others if not is_of_ray(line) and line != "starting …"] == []
    nothing_left(attempt.service)
    assert not attempt.service.ray_folder.exists()
    return said


def is_of_ray(line: str) -> bool:
    """True for a log line that Ray's libraries write to the standard error of the process that starts Ray."""
    return line.startswith("[20") or "File descriptor limit" in line


def test_a_file_in_the_place_of_the_data_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        said = refusal_of(tmp_path, data_dir)
        assert str(data_dir) in said and "--data-dir" in said


def test_a_data_folder_that_is_read_only_is_named(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "ro", "ro") as folder:
        said = refusal_of(tmp_path, folder / "data")
    assert "Read-only file system" in said and "volume" in said


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "full", "size=64k") as folder, filled(folder):
        said = refusal_of(tmp_path, folder / "data")
    assert str(folder) in said and "No space left on device" in said and "Make room" in said


def test_a_disk_without_inodes_is_named(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "full", "size=64m,nr_inodes=5") as folder:
        said = refusal_of(tmp_path, folder / "data")
    assert str(folder) in said and "No space left on device" in said and "Make room" in said


@pytest.mark.parametrize("options", ["size=4m", "size=64m,nr_inodes=100"])
def test_a_disk_that_has_no_room_for_the_files_of_ray_is_named(tmp_path: Path, options: str) -> None:
    folder = Path("/tmp", secrets.token_hex(2))  # short enough for Ray's sockets
    with tmpfs(folder, options):
        said = refusal_of(tmp_path, tmp_path / "data", env={"TMPDIR": str(folder)})
    folder.rmdir()
    assert str(folder) in said and "full" in said and "TMPDIR" in said


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"api_key": 7}'])
def test_damaged_secrets_are_named_and_never_made_anew(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "data" / "secrets" / "secrets.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(text)

    said = refusal_of(tmp_path, tmp_path / "data")

    assert str(file) in said and "copy of the file" in said
    assert file.read_bytes() == text


def test_secrets_that_the_store_cannot_use_are_named_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "data" / "secrets" / "secrets.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({**MachineSecrets.make().model_dump(), "s3_access_key": "a,secret"}))

    said = refusal_of(tmp_path, tmp_path / "data")

    assert str(file) in said and "a,secret" not in said


def test_a_store_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    hidden = f'mount --bind /dev/null {PROGRAMS}/rclone && exec "$@"'

    said = refusal_of(tmp_path, tmp_path / "data", before=["unshare", "--mount", "sh", "-c", hidden, "sh"])

    assert "embedded server" in said and "Permission denied" in said


def test_an_occupied_port_of_the_store_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        said = refusal_of(tmp_path, tmp_path / "data", env={"HOLDFAST_STORE_PORT": str(port)})
    assert str(port) in said and "HOLDFAST_STORE_PORT" in said


def test_a_user_without_the_needed_rights_gets_an_error_that_says_so(tmp_path: Path) -> None:
    before = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]

    said = refusal_of(tmp_path, tmp_path / "data", before=before)

    assert "Permission denied" in said and "Run as root" in said


def test_a_limit_of_open_files_is_named(tmp_path: Path) -> None:
    said = refusal_of(tmp_path, tmp_path / "data", before=["prlimit", "--nofile=32:32", "--"])

    assert "open files" in said


def test_a_temporary_folder_with_too_long_a_path_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()

    said = refusal_of(tmp_path, tmp_path / "data", env={"TMPDIR": str(folder)})

    assert "too long" in said and "TMPDIR" in said and str(folder) in said
    assert list(folder.iterdir()) == []


def test_a_ray_that_does_not_come_up_is_named_and_ended(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        said = refusal_of(tmp_path, tmp_path / "data", env={"RAY_GCS_SERVER_PORT": str(busy.getsockname()[1])})

    assert "Ray did not start" in said
