"""A full disk of the node: unchanged files stay, new ones are refused, and the error names the disk."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from actors.config import DEFAULT_UID
from actors.errors import SandboxUnavailableError
from actors.node import mountinfo
from actors.node.doctor import RESTORES, examine
from actors.node.drivers import Driver
from gateway.embedded.reserve import Reserve
from gateway.embedded.secrets import load_or_make, write_private
from tests.support.full_disk import filled, tmpfs, without_inodes
from tests.support.s3 import embedded_s3
from tests.support.sandboxes import Node, backup, restore, sh
from tests.support.service import HOLDFAST, clean_environment


def test_a_full_disk_keeps_unchanged_files_and_refuses_new_ones(tmp_path: Path) -> None:
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
def test_a_private_file_that_others_can_read_is_rewritten(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text("token")
    file.chmod(mode)
    write_private(file, "token")
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", [b"other", b"", b"\xff\xfe"])
def test_a_private_file_with_other_content_is_replaced(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(text)
    file.chmod(0o600)
    write_private(file, "token")
    assert file.read_text() == "token"


def test_the_doctor_names_a_full_disk_as_the_only_cause(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=16m") as disk:
        data_dir = disk / "data"
        data_dir.mkdir(mode=0o700)
        with filled(disk):
            failed = [line for line in examine(data_dir, DEFAULT_UID, thorough=False) if not line.ok]
    assert {line.name for line in failed} >= {RESTORES}
    drivers = [line for line in failed if line.name == RESTORES or line.name.startswith("driver ")]
    assert [line for line in drivers if "disk is full" not in line.detail or "make room" not in (line.fix or "")] == []


def test_a_link_at_a_private_files_path_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target, file = tmp_path / "target", tmp_path / "token"
    target.write_text("token")
    target.chmod(0o600)
    file.symlink_to(target)
    write_private(file, "token")
    assert not file.is_symlink() and file.read_text() == "token"
    assert target.read_text() == "token"


FULL = {"blocks": ("size=64m", filled), "inodes": ("size=64m,nr_inodes=2000", without_inodes)}


@pytest.mark.parametrize("lacks", FULL)
@pytest.mark.parametrize("is_awake", [True, False])
def test_a_sandbox_is_destroyed_on_a_full_disk_and_gives_its_space_back(
    tmp_path: Path, best_driver: Driver, is_awake: bool, lacks: str
) -> None:
    options, fill = FULL[lacks]
    with (
        tmpfs(tmp_path / "disk", options) as disk,
        embedded_s3(disk / "s3") as server,
        Node(disk / "data", server.config, best_driver) as node,
    ):
        node.layout.prepare()
        box = node.sandbox()
        sh(box, "head -c 5000000 /dev/urandom > big")
        restore(box, backup(box))
        sh(box, "head -c 5000000 /dev/urandom > other")
        if not is_awake:
            box.close()
            box = node.sandbox()
        with fill(disk):
            box.destroy()
            left = os.statvfs(disk)
            assert left.f_bavail * left.f_frsize > 5_000_000
        assert not node.home("box").exists()
        assert mountinfo.mounts_under(disk / "data") == []


def test_a_sandbox_is_destroyed_on_a_disk_without_room_for_the_trash(tmp_path: Path, best_driver: Driver) -> None:
    with (
        embedded_s3(tmp_path / "s3") as server,
        tmpfs(tmp_path / "disk", "size=64m,nr_inodes=2000") as disk,
        Node(disk / "data", server.config, best_driver) as node,
    ):
        box = node.sandbox()
        sh(box, "echo > file")
        assert not node.layout.trash.exists()
        with without_inodes(disk):
            box.destroy()
        assert not node.home("box").exists()


@pytest.mark.parametrize("lacks", FULL)
def test_a_sandbox_without_files_here_is_destroyed_on_a_full_disk(
    tmp_path: Path, best_driver: Driver, lacks: str
) -> None:
    options, fill = FULL[lacks]
    with (
        embedded_s3(tmp_path / "s3") as server,
        tmpfs(tmp_path / "disk", options) as disk,
        Node(disk / "data", server.config, best_driver) as node,
    ):
        box = node.sandbox()
        sh(box, "echo > file")
        box.sleep(box.back_up_for_sleep())
        assert not node.home("box").exists()
        with fill(disk):
            node.sandbox(awake=False).destroy()
        assert node.catalog().sandboxes.find_state("default", "box") is None


def test_a_read_only_disk_is_named_as_the_cause(tmp_path: Path, best_driver: Driver) -> None:
    with (
        embedded_s3(tmp_path / "s3") as server,
        tmpfs(tmp_path / "disk", "size=64m") as disk,
        Node(disk / "data", server.config, best_driver) as node,
    ):
        box = node.sandbox()
        sh(box, "echo > file")
        box.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        try:
            for act in (box.destroy, box.wake):
                with pytest.raises(SandboxUnavailableError) as caught:
                    act()
                assert caught.value.context["reason"] == "READ_ONLY"
        finally:
            subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        box.destroy()
        assert not node.home("box").exists()


def reserve_of(folder: Path) -> tuple[int, int]:
    """Returns a reserve's size, in KiB and in files."""
    return int((folder / "room").stat().st_blocks / 2), len(list(folder.iterdir())) - 1


def test_the_reserve_gives_room_for_a_start_and_is_refilled_as_far_as_possible(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=128m,nr_inodes=4000") as disk:
        reserve = Reserve(disk / "reserve")
        reserve.keep()
        assert reserve_of(disk / "reserve") == (16 * 1024, 256)
        with filled(disk), without_inodes(disk):
            with reserve.given_back():
                (disk / "needed").write_bytes(b"0" * 5_000_000)
            kept_kib, kept_files = reserve_of(disk / "reserve")
            assert 10 * 1024 < kept_kib < 12 * 1024 and 250 < kept_files < 256
            reserve.keep()  # no space has become free
            assert reserve_of(disk / "reserve") == (kept_kib, kept_files)
            (disk / "needed").unlink()
            reserve.keep(as_before=True)
            assert reserve_of(disk / "reserve")[0] > 14 * 1024
        reserve.keep()
        assert reserve_of(disk / "reserve") == (16 * 1024, 256)


def test_the_reserve_takes_at_most_a_quarter_of_a_small_disk(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=8m,nr_inodes=400") as disk:
        Reserve(disk / "reserve").keep()
        held_kib, files = reserve_of(disk / "reserve")
        assert held_kib <= 2 * 1024 and files <= 100


def test_a_full_or_read_only_disk_has_no_reserve_and_causes_no_error(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=1m") as disk, filled(disk):
        with Reserve(disk / "reserve").given_back():
            pass
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with Reserve(disk / "reserve").given_back():
            pass
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"], ["--help"]])
def test_a_cli_command_with_its_output_on_a_full_disk_fails_with_one_line(tmp_path: Path, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        argv = [str(HOLDFAST), *arguments]
        env = clean_environment(tmp_path, {"HOLDFAST_DATA_DIR": str(tmp_path / "data")})
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=env)
    assert (done.returncode, done.stderr) == (1, "error: the output: No space left on device.\n")
