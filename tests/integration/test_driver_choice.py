"""A mount driver passes trials before it is used, and its verdict is kept only while nothing has changed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from actors.config import NodeConfig
from actors.node import doctor, driver_choice, mountinfo, mounting, process, proofs, trials
from actors.node.driver_choice import Verdict
from actors.node.drivers import Driver
from actors.node.errors import DriverUnavailableError
from actors.node_layout import NodeLayout
from gateway.embedded import machine
from tests.conftest import ALLOW_MISSING_DRIVERS
from tests.support.mount_leaks import nothing_leaks, open_files
from tests.support.user_namespace import in_a_user_namespace

OFFERED = (Driver.KERNEL, Driver.MIXED, Driver.ROOTLESS)
BROKEN_BY_FUSE_OVERLAYFS_1_10 = {
    "replaced_by_rename", "replaced_by_link", "directory_by_file", "file_by_directory", "restored_links",
    "many_names", "flagged_renames", "special_links", "open_files",
}  # fmt: skip

CHOOSE = "tests.support.programs.chosen_driver"


@pytest.fixture(autouse=True)
def _every_driver_can_mount() -> None:
    if ALLOW_MISSING_DRIVERS in os.environ:
        pytest.skip("this node is allowed to lack drivers")


def tmpfs(point: Path, *options: str) -> Path:
    point.mkdir()
    mounting.mount(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(point)], cwd=point.parent)
    return point


def overlay(folder: Path) -> Path:
    """A folder on an overlay, like the data folder of a container without a volume."""
    for name in ("lower", "upper", "work", "container"):
        (folder / name).mkdir()
    options = "lowerdir=lower,upperdir=upper,workdir=work"
    mounting.mount(["mount", "-t", "overlay", "-o", options, "overlay", "container"], cwd=folder)
    return folder / "container"


def test_each_driver_is_offered_only_if_it_behaves_like_a_plain_directory(scratch: Path) -> None:
    found = driver_choice.available(scratch)
    assert {driver: verdict for driver, verdict in found.items() if driver in OFFERED} == dict.fromkeys(
        OFFERED, Verdict()
    )
    failed = {line.partition(":")[0] for line in found[Driver.FUSE].failed}
    assert failed == BROKEN_BY_FUSE_OVERLAYFS_1_10
    assert driver_choice.choose("auto", scratch) is Driver.KERNEL
    assert driver_choice.choose("none", scratch) is None


def test_a_driver_that_is_refused_names_its_trials_and_what_to_use_instead(scratch: Path) -> None:
    with pytest.raises(DriverUnavailableError, match="replaced_by_rename") as raised:
        driver_choice.choose(Driver.FUSE, scratch)
    assert "HOLDFAST_DRIVER to auto" in (raised.value.hint or "")


def test_the_doctor_has_a_readable_line_for_each_trial_that_failed(scratch: Path) -> None:
    lines = [line for line in doctor.examine(scratch, 61_184, driver=Driver.FUSE) if line.name == "driver fuse"]
    assert len(lines) == len(BROKEN_BY_FUSE_OVERLAYFS_1_10)
    assert all(line.required and not line.ok and "\n" not in line.detail and line.fix for line in lines)
    assert any(
        "replaced_by_rename: directory/inner is there again. Wanted: A restored" in line.detail for line in lines
    )


def test_the_docstring_of_every_trial_is_a_sentence() -> None:
    for trial in trials.TRIALS:
        assert (trial.__doc__ or "").rstrip().endswith("."), trial.__name__


def test_a_verdict_is_not_made_again_while_nothing_has_changed(scratch: Path) -> None:
    with nothing_leaks(scratch):
        driver_choice.verdict(Driver.KERNEL, scratch)
        before = {file.name: file.stat().st_mtime_ns for file in scratch.glob("*.json")}
        assert driver_choice.verdict(Driver.KERNEL, scratch).reason is None
        assert {file.name: file.stat().st_mtime_ns for file in scratch.glob("*.json")} == before


@pytest.mark.parametrize("change", ["tool", "packages", "boot"])
def test_a_verdict_is_made_again_after_a_change(scratch: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    lie = Verdict(failed=("lie: it is not so.",))
    driver_choice.verdict(Driver.MIXED, scratch)
    (kept,) = scratch.glob("mixed-*.json")
    kept.write_text(lie.model_dump_json())
    assert driver_choice.verdict(Driver.MIXED, scratch) == lie
    if change == "tool":
        tools = scratch / "bin"
        tools.mkdir()
        (tools / "squashfuse_ll").write_text('#!/bin/sh\nexec /usr/bin/squashfuse_ll "$@"\n')
        (tools / "squashfuse_ll").chmod(0o755)
        monkeypatch.setitem(process.ENVIRONMENT, "PATH", f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin")
    else:
        other = scratch / "other"
        other.write_text("other")
        monkeypatch.setattr(driver_choice, "_PACKAGES" if change == "packages" else "_BOOT_ID", other)
    assert driver_choice.verdict(Driver.MIXED, scratch) == Verdict()
    assert not kept.exists()


TRIALS_THAT_DIE = """#!/bin/sh
if [ "$4" = {command} ]; then
    touch "$5/made"
    kill -KILL $$
fi
exec {real} "$@"
"""
"""A replacement for Python that is killed in the middle of its trials."""


@pytest.mark.parametrize("driver", Driver)
@pytest.mark.parametrize("command", ["act", "look"])
def test_a_failing_trial_leaves_nothing_mounted_or_open(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, driver: Driver, command: str
) -> None:
    python = scratch / "python"
    python.write_text(TRIALS_THAT_DIE.format(real=sys.executable, command=command))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    place = scratch / "place"
    with nothing_leaks(scratch):
        with capture_logs() as lines:
            found = driver_choice.prove(driver, place)
        assert lines == []
        assert found.obstacle is not None and "python failed with status -9" in found.obstacle
        assert [file for file in open_files() if file.startswith(str(scratch))] == []
    assert [file.suffix for file in place.iterdir()] == [".json"]


def test_a_driver_is_not_refused_because_a_service_starts_during_its_trials(scratch: Path) -> None:
    over, node = threading.Event(), NodeConfig(data_dir=scratch)

    def start_again_and_again() -> None:
        while not over.is_set():
            machine._clean_node(node)

    with ThreadPoolExecutor(1) as pool:
        starts = pool.submit(start_again_and_again)
        try:
            assert driver_choice.prove(Driver.KERNEL, NodeLayout(node).driver) == Verdict()
        finally:
            over.set()
        assert starts.result() is None


def test_a_start_removes_the_trials_of_killed_processes(scratch: Path) -> None:
    node = NodeConfig(data_dir=scratch)
    left = NodeLayout(node).driver / ".driver-left"
    left.mkdir(parents=True)
    tmpfs(left / "mounted")
    machine._clean_node(node)
    assert mountinfo.mounts_under(scratch) == []
    assert not left.exists()


def test_a_cached_obstacle_expires_after_some_minutes(scratch: Path) -> None:
    place = overlay(scratch)
    assert driver_choice.verdict(Driver.KERNEL, place).obstacle is not None
    (kept,) = place.glob("kernel-*.json")
    kept.write_text(Verdict(obstacle="It was for want of memory.").model_dump_json())
    assert driver_choice.verdict(Driver.KERNEL, place).reason == "It was for want of memory."
    os.utime(kept, (1, 1))
    assert driver_choice.verdict(Driver.KERNEL, place).reason != "It was for want of memory."


def test_a_driver_that_cannot_work_in_a_folder_is_refused_with_the_reason(scratch: Path) -> None:
    full = tmpfs(scratch / "full", "nr_inodes=2")
    with pytest.raises(DriverUnavailableError, match="No space left"):
        driver_choice.choose(Driver.KERNEL, full)
    assert driver_choice.choose("auto", full) is None


def test_a_folder_on_an_overlay_gets_copies_only_and_the_doctor_advises_a_volume(scratch: Path) -> None:
    place = overlay(scratch)
    assert driver_choice.choose("auto", place) is None
    lines = doctor.examine(place, 61_184)
    (restores,) = [line for line in lines if line.name == "restores"]
    assert not restores.ok and not restores.required
    assert "copies only" in restores.detail
    (kernel,) = [line for line in lines if line.name == "driver kernel"]
    assert "Invalid argument" in kernel.detail and "merged" not in kernel.detail
    assert "a volume" in (kernel.fix or "")
    mounting.sweep(scratch)


def test_a_limit_that_a_driver_does_not_declare_fails_its_trial(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "limits", property(lambda driver: frozenset()))
    failed = proofs.failures(Driver.ROOTLESS, scratch, "0" * 64)
    assert [line.partition(":")[0] for line in failed] == ["renamed_directory", "restored_links", "special_links"]


def test_in_a_user_namespace_the_rootless_driver_is_chosen(scratch: Path) -> None:
    ended = in_a_user_namespace([sys.executable, "-m", CHOOSE, str(scratch)])
    assert (ended.returncode, ended.stdout) == (0, "rootless\n"), ended.stderr


def test_without_the_right_to_mount_no_driver_is_offered(scratch: Path) -> None:
    argv = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-m", CHOOSE, str(scratch)]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert (ended.returncode, ended.stdout) == (0, "None\n"), ended.stderr
