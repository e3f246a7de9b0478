"""The files with the service's own secrets, on disks that are full and in places that were tampered with."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from gateway.embedded.secrets import load_or_make, write_private
from tests.support.full_disk import filled, tmpfs


def test_on_a_full_disk_what_is_unchanged_stays_and_what_is_new_is_refused(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=1m") as disk:
        made = load_or_make(disk / "secrets")
        file = disk / "token"
        write_private(file, "token")
        with filled(disk):
            write_private(file, "token")
            assert load_or_make(disk / "secrets") == made
            with pytest.raises(OSError) as caught:
                write_private(file, "another" * 1000)
            assert caught.value.errno == errno.ENOSPC
        assert file.read_text() == "token"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_can_read_is_written_anew(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text("token")
    file.chmod(mode)
    write_private(file, "token")
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", [b"other", b"", b"\xff\xfe"])
def test_a_file_that_says_something_else_is_replaced(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(text)
    file.chmod(0o600)
    write_private(file, "token")
    assert file.read_text() == "token"


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target, file = tmp_path / "target", tmp_path / "token"
    target.write_text("token")
    target.chmod(0o600)
    file.symlink_to(target)
    write_private(file, "token")
    assert not file.is_symlink() and file.read_text() == "token"
    assert target.read_text() == "token"
