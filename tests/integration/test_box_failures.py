"""A box that cannot be built, or a tool in it that the node limits: the error says so, and doctor finds it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.errors import InvalidRequestError, SandboxUnavailableError
from actors.node import doctor
from actors.node.box_trials import box_trials
from actors.node.errors import BoxError, NodeError, NoMemoryLeftError, NoProcessesLeftError, ToolError, ToolKilledError
from actors.sandbox.facade import LocalSandbox
from tests.integration.test_archiver import Setup, put
from tests.integration.test_command_beginnings import UNBUILT as UNBUILT_BOXES
from tests.support.node_faults import processes_limited, tools_replaced
from tests.support.sandboxes import UID, Node, backup, described, restore, sh

CONTENT = os.urandom(100_000)
UNBUILT = "echo 'bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted' >&2; exit 1"
LIMITED: dict[str, tuple[str, tuple[type[NodeError], ...]]] = {
    "no box": (UNBUILT, (BoxError,)),
    "no program of that name": ("exec /none", (BoxError,)),
    "killed": ("kill -9 $$", (ToolKilledError,)),
    "its file cut off": ("prlimit --fsize=4096 --pid $$; {real}", (ToolError,)),
    # SIGXFSZ kills a tool at the limit; but the first process of a pid namespace survives it and reports EFBIG itself
    "no memory": ("prlimit --as=40000000 --pid $$; {real}", (NoMemoryLeftError, NoProcessesLeftError)),
}

PROCESSES = {"no processes": 1, "no threads": 3}


@contextmanager
def limited(folder: Path, cause: str) -> Iterator[tuple[type[NodeError], ...]]:
    """A node on which `cause` limits everything that runs in a box; yields the expected errors, of which one occurs."""
    if cause in PROCESSES:
        with processes_limited(PROCESSES[cause]) as script, tools_replaced(folder, {"bwrap": script + "{real}"}):
            yield (NoProcessesLeftError,)
        return
    script, kinds = LIMITED[cause]
    with tools_replaced(folder, {"bwrap": script}):
        yield kinds


CAUSES = [*LIMITED, *PROCESSES]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    setup = Setup(tmp_path)
    put(setup.work, b"file", CONTENT)
    return setup


@pytest.mark.parametrize("cause", CAUSES)
def test_a_tool_limited_by_the_node_is_a_node_error_and_not_a_bad_archive(setup: Setup, cause: str) -> None:
    made = setup.create()
    with limited(setup.folder, cause) as kinds:
        with pytest.raises(kinds):
            setup.create()
        with pytest.raises(kinds):
            setup.extracted(made)
        with pytest.raises(kinds):
            setup.archiver.convert(made.path, setup.spool(), cancelled=threading.Event())
        if cause not in ("its file cut off", "no memory", "no threads"):  # a listing writes none, and needs little
            with pytest.raises(kinds):
                setup.archiver.find_name(made.path, lambda name: False, cancelled=threading.Event())
    assert (setup.extracted(made) / "file").read_bytes() == CONTENT


WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
RESTORES = "tests.support.programs.restore_and_sleep"


def test_a_node_without_net_admin_restores_in_both_modes_and_wakes_from_the_bucket(node: Node) -> None:
    argv = [*WITHOUT_NET_ADMIN, sys.executable, "-m", RESTORES, described(node)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr
    assert all(f"{way} 1\n" in ended.stderr for way in ("overlay", "copy", "woken")), ended.stderr


def boxes_found(folder: Path, *, network: bool = False) -> dict[str, doctor.Finding]:
    names = {trial.name for trial in box_trials(network=network)}
    found = {finding.name: finding for finding in doctor.examine(folder, UID, network=network)}
    return {name: found[name] for name in names}


def test_doctor_tries_every_kind_of_box(tmp_path: Path) -> None:
    found = boxes_found(tmp_path)
    assert set(found) == {"sandbox", "box reader", "box keeper", "box converter"}
    assert all(finding.ok and finding.required for finding in found.values())
    assert set(boxes_found(tmp_path, network=True)) == {*found, "box network"}


def test_doctor_says_why_each_box_cannot_be_built(tmp_path: Path) -> None:
    with tools_replaced(tmp_path, {"bwrap": UNBUILT}):
        found = boxes_found(tmp_path, network=True)
    assert len(found) == 5
    for finding in found.values():
        assert not finding.ok and finding.required and finding.fix
        assert "Failed RTM_NEWADDR" in finding.detail


def test_doctor_finds_that_only_the_keeper_cannot_be_built(tmp_path: Path) -> None:
    refused = "echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1"
    with tools_replaced(tmp_path, {"unshare": refused}):
        found = boxes_found(tmp_path)
    assert [name for name, finding in found.items() if not finding.ok] == ["box keeper"]
    assert "Operation not permitted" in found["box keeper"].detail and found["box keeper"].fix


def hydrated(box: LocalSandbox) -> None:
    transfer = box.open_hydrate()
    box.send(transfer, b"\0" * 10_240)
    box.commit(transfer)


@pytest.mark.parametrize(("script", "reason"), UNBUILT_BOXES.values(), ids=UNBUILT_BOXES.keys())
def test_a_tar_whose_box_cannot_be_built_is_not_the_callers_error(kernel_node: Node, script: str, reason: str) -> None:
    box = kernel_node.sandbox()
    with tools_replaced(kernel_node.data_dir, {"bwrap": script}):
        for call in (hydrated, lambda box: list(box.persist("a-name"))):
            with pytest.raises(SandboxUnavailableError) as raised:
                call(box)
            assert raised.value.context["reason"] == reason
    hydrated(box)
    handle = backup(box)
    restore(box, handle)
    assert sh(box, "ls") == ""


def test_a_tar_whose_file_names_look_like_node_errors_is_the_callers_error(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, ": > file")
    transfer = box.open_hydrate()
    box.send(transfer, tarfile.TarInfo("file/Cannot allocate memory").tobuf() + bytes(1024))
    with pytest.raises(InvalidRequestError, match="not a tar archive"):
        box.commit(transfer)
