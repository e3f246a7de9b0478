"""Explanations of failures that a container causes: the reason, and the line to change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.node.causes import USES, brief, cgroup_cause, explain, foreseen, lacking
from actors.node.surroundings import Surroundings

GOOD = Surroundings(
    root=True,
    missing=frozenset(),
    user_namespace=False,
    seccomp=False,
    apparmor=None,
    masked_proc=False,
    cgroup="rw",
    cgroup_point=Path("/sys/fs/cgroup"),
    fuse=True,
    loop=True,
    userns_limit=1000,
    file_system="ext4",
    shared_memory_bytes=2**30,
    open_files=65536,
)
NAMESPACE = "bwrap: Creating new namespace failed: Operation not permitted"
MOUNT = "mount of squashfs failed: mount: /var/x/lower: permission denied."
FUSE = "squashfuse_ll exited with status 1: fuse: device not found, try 'modprobe fuse' first"


@pytest.mark.parametrize(
    ("failure", "lacks", "why", "docker", "pod"),
    [
        (NAMESPACE, {"root": False}, "root", "--user 0", "runAsUser: 0"),
        ("setpriv: setresuid failed: Invalid argument", {"root": False}, "root", "--user 0", "runAsUser: 0"),
        (NAMESPACE, {"missing": frozenset({"SYS_ADMIN"}), "seccomp": True}, "CAP_SYS_ADMIN", "--cap-add SYS_ADMIN",
         "capabilities.add: [SYS_ADMIN]"),
        ("unshare: unshare failed: Operation not permitted", {"missing": frozenset({"SYS_ADMIN"})}, "CAP_SYS_ADMIN",
         "--cap-add SYS_ADMIN", "[SYS_ADMIN]"),
        (MOUNT, {"missing": frozenset({"SYS_ADMIN"}), "fuse": False}, "CAP_SYS_ADMIN",
         "--cap-add SYS_ADMIN", "[SYS_ADMIN]"),
        ("bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted", {"missing": frozenset({"NET_ADMIN"})},
         "CAP_NET_ADMIN", "--cap-add NET_ADMIN", "[NET_ADMIN]"),
        ("setpriv: setgroups failed: Operation not permitted", {"missing": frozenset({"SETGID"})}, "CAP_SETGID",
         "--cap-add SETGID", "[SETGID]"),
        ("setpriv: setresuid failed: Operation not permitted", {"missing": frozenset({"SETUID"})}, "CAP_SETUID",
         "--cap-add SETUID", "[SETUID]"),
        ("chown: changing ownership of 'a': Operation not permitted", {"missing": frozenset({"CHOWN"})}, "CAP_CHOWN",
         "--cap-add CHOWN", "[CHOWN]"),
        ("open: Permission denied", {"missing": frozenset({"DAC_OVERRIDE"})}, "CAP_DAC_OVERRIDE", "DAC_OVERRIDE",
         "[DAC_OVERRIDE]"),
        ("chmod: Operation not permitted", {"missing": frozenset({"FOWNER"})}, "CAP_FOWNER", "FOWNER", "[FOWNER]"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", {"masked_proc": True}, "/proc",
         "systempaths=unconfined", "procMount: Unmasked with hostUsers: false"),
        (NAMESPACE, {"seccomp": True}, "seccomp", "seccomp=unconfined", "seccompProfile"),
        (MOUNT, {"apparmor": "docker-default (enforce)"}, "AppArmor", "apparmor=unconfined", "appArmorProfile"),
        (FUSE, {"fuse": False}, "/dev/fuse", "--device /dev/fuse", "/dev/fuse"),
        ("mount: lower: failed to setup loop device for a.sqsh.", {"loop": False}, "loop", "-v /dev:/dev", "/dev"),
        ("mount: merged: wrong fs type, bad option, bad superblock on overlay", {"file_system": "overlay"},
         "data folder", "-v VOLUME:/var/lib/holdfast", "volume"),
        ("bwrap: Can't fork for pid 1: Resource temporarily unavailable", {}, "processes", "--pids-limit",
         "podPidsLimit"),
        ("fork: Cannot allocate memory", {}, "memory", "--memory", "limits.memory"),
    ],
)  # fmt: skip
def test_a_failure_is_explained_by_its_cause_with_the_lines_to_change(
    failure: str, lacks: dict[str, Any], why: str, docker: str, pod: str
) -> None:
    cause = explain(failure, replace(GOOD, **lacks))

    assert cause is not None
    assert why in cause.why
    command, _, manifest = cause.fix.partition("; in a pod: ")
    assert command.startswith("docker run ") and docker in command
    assert pod in manifest
    assert "\n" not in cause.fix and len(cause.fix) < 200


@pytest.mark.parametrize(
    ("failure", "lacks", "fix"),
    [
        (NAMESPACE, {"userns_limit": 0}, "sysctl user.max_user_namespaces"),
        (MOUNT, {"user_namespace": True}, "`rootless`"),
        ("setpriv: setresuid failed: Invalid argument", {"user_namespace": True}, "HOLDFAST_SANDBOX_UID"),
    ],
)
def test_a_failure_that_no_manifest_can_fix_is_explained_too(failure: str, lacks: dict[str, Any], fix: str) -> None:
    cause = explain(failure, replace(GOOD, **lacks))

    assert cause is not None and fix in cause.fix


def test_a_failure_that_the_surroundings_do_not_explain_gets_no_cause() -> None:
    assert explain("mksquashfs: some new defect", GOOD) is None
    assert explain(NAMESPACE, GOOD) is None


@pytest.mark.parametrize(
    ("lacks", "fix"),
    [
        ({"cgroup": None}, "mount -t cgroup2 none /sys/fs/cgroup"),
        ({"cgroup": "ro"}, "mount -o remount,bind,rw /sys/fs/cgroup"),
        ({"root": False}, "--user 0"),
        ({"user_namespace": True}, "delegate"),
        ({}, "cgroup.type"),
    ],
)
def test_control_groups_that_cannot_be_made_have_a_cause(lacks: dict[str, Any], fix: str) -> None:
    assert fix in cgroup_cause(replace(GOOD, **lacks)).fix


def test_every_needed_capability_has_a_use_and_a_line() -> None:
    for name in USES:
        assert f"--cap-add {name}" in lacking(name).fix


def test_all_obstacles_of_a_container_are_foreseen_at_once() -> None:
    bad = replace(GOOD, masked_proc=True, cgroup="ro", fuse=False, loop=False, seccomp=True, apparmor="profile")

    assert [name for name, _ in foreseen(bad)] == ["proc", "cgroup", "fuse", "loop", "seccomp", "apparmor"]
    assert foreseen(GOOD) == []


def test_a_tools_message_becomes_one_short_line_without_digests() -> None:
    said = f"mount: /var/lib/holdfast/node/{'0' * 64}/lower: permission denied.\\n       dmesg(1) may have more."

    assert brief(said) == "mount: lower: permission denied."
    assert len(brief("word " * 999)) < 200
    assert brief(f"cannot mount {'0' * 64}") == "cannot mount …"


def status(capabilities: int, seccomp: int = 0) -> str:
    return f"CapEff:\t{capabilities:016x}\nCapBnd:\t{capabilities:016x}\nSeccomp:\t{seccomp}\n"


def mount(point: str, fs_type: str, options: str = "rw") -> str:
    return f"1 0 0:1 / {point} {options} - {fs_type} none rw\n"


@pytest.fixture
def fake_proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "self" / "attr").mkdir(parents=True)
    (proc / "sys" / "user").mkdir(parents=True)
    (proc / "self" / "status").write_text(status(0x1FFFFFFFFFF))
    (proc / "self" / "uid_map").write_text("         0          0 4294967295\n")
    (proc / "self" / "mountinfo").write_text(mount("/", "ext4") + mount("/sys/fs/cgroup", "cgroup2"))
    return proc


def test_a_machine_restricts_nothing(fake_proc: Path, tmp_path: Path) -> None:
    here = Surroundings.read(Path("/var/lib/holdfast"), fake_proc, tmp_path)

    assert here.missing == frozenset()
    assert (here.user_namespace, here.seccomp, here.apparmor, here.masked_proc) == (False, False, None, False)
    assert (here.cgroup, here.cgroup_point, here.file_system) == ("rw", Path("/sys/fs/cgroup"), "ext4")


def test_a_containers_restrictions_are_read_from_proc(fake_proc: Path, tmp_path: Path) -> None:
    (fake_proc / "self" / "status").write_text(status(0xA80425FB | 1 << 21, seccomp=2))
    (fake_proc / "self" / "uid_map").write_text("         0     200000      65536\n")
    (fake_proc / "self" / "attr" / "current").write_text("docker-default (enforce)\n")
    (fake_proc / "sys" / "user" / "max_user_namespaces").write_text("0\n")
    (fake_proc / "self" / "mountinfo").write_text(
        mount("/", "overlay") + mount(f"{fake_proc}/acpi", "tmpfs", "ro") + mount("/sys/fs/cgroup", "cgroup2", "ro")
    )

    here = Surroundings.read(Path("/var/lib/holdfast"), fake_proc, tmp_path)

    assert here.missing == {"NET_ADMIN"}
    assert (here.user_namespace, here.seccomp, here.masked_proc) == (True, True, True)
    assert here.apparmor == "docker-default (enforce)"
    assert (here.cgroup, here.file_system, here.userns_limit) == ("ro", "overlay", 0)
    assert (here.fuse, here.loop) == (False, False)


def test_an_ordinary_mount_in_proc_is_not_taken_for_a_mask(fake_proc: Path, tmp_path: Path) -> None:
    with (fake_proc / "self" / "mountinfo").open("a") as file:
        file.write(mount(f"{fake_proc}/sys/fs/binfmt_misc", "autofs"))

    assert not Surroundings.read(tmp_path, fake_proc, tmp_path).masked_proc


@pytest.mark.parametrize(
    "failure",
    ["python failed with status 1: OSError: [Errno 28] No space left on device", "mkfs: Disk quota exceeded"],
)
def test_a_full_disk_is_named_before_any_missing_right(failure: str) -> None:
    lacking_all = replace(GOOD, missing=frozenset(USES), seccomp=True, fuse=False)
    for here in (GOOD, lacking_all):
        found = explain(failure, here)
        assert found is not None and "full" in found.why and "make room" in found.fix
