"""Finding the service's own control group, on nodes and in containers, with cgroup v1 and v2."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from actors.node.errors import CgroupError
from actors.node.hierarchies import SERVICE_LEAF, Hierarchies

V2 = "30 20 0:26 {root} {point} rw,nosuid - cgroup2 cgroup rw"
V1 = "{id} 20 0:{id} {root} {point} rw,nosuid - cgroup cgroup rw,{controller}"


@dataclasses.dataclass
class Node:
    """A fake /sys/fs/cgroup in a folder, with the files that the kernel shows."""

    folder: Path

    def find(self, mounts: list[str], groups: list[str]) -> Hierarchies:
        (self.folder / "mountinfo").write_text("".join(f"{line}\n" for line in mounts))
        (self.folder / "groups").write_text("".join(f"{line}\n" for line in groups))
        return Hierarchies.find(self.folder / "mountinfo", self.folder / "groups")

    def point(self, name: str, group: str = "") -> Path:
        (self.folder / name / group).mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def v2(self, group: str = "", root: str = "/") -> str:
        return V2.format(root=root, point=self.point("unified", group))

    def v1(self, controller: str, group: str = "", root: str = "/") -> str:
        number = {"memory": 41, "pids": 42, "cpu": 43}[controller]
        return V1.format(id=number, root=root, point=self.point(controller, group), controller=controller)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_systemd_unit_is_found_at_its_group(node: Node) -> None:
    found = node.find([node.v2("system.slice/holdfast.service")], ["0::/system.slice/holdfast.service"])
    assert found.v2 == node.folder / "unified/system.slice/holdfast.service"
    assert found.v1 == {}
    assert found.roots == (node.folder / "unified",)


def test_a_container_with_a_cgroup_namespace_is_found_at_its_root(node: Node) -> None:
    assert node.find([node.v2()], ["0::/"]).v2 == node.folder / "unified"


def test_a_privileged_container_without_a_cgroup_namespace_is_found_below_its_pods_group(node: Node) -> None:
    found = node.find([node.v2("kubepods/pod1/ctr1")], ["0::/kubepods/pod1/ctr1"])
    assert found.v2 == node.folder / "unified/kubepods/pod1/ctr1"


def test_the_group_of_a_service_in_its_leaf_is_the_leafs_parent(node: Node) -> None:
    found = node.find([node.v2("pod/ctr")], [f"0::/pod/ctr/{SERVICE_LEAF}"])
    assert found.v2 == node.folder / "unified/pod/ctr"
    assert node.find([node.v2()], [f"0::/{SERVICE_LEAF}"]).v2 == node.folder / "unified"


def test_a_partial_mount_of_the_hierarchy_is_read_from_its_own_root(node: Node) -> None:
    """Docker on a v1 node mounts a container's own groups, but /proc/self/cgroup names them from the real root."""
    mounts = [node.v2(root="/docker/c1"), node.v1("memory", root="/docker/c1"), node.v1("pids", "inner", "/docker/c1")]
    found = node.find(mounts, ["9:pids:/docker/c1/inner", "4:memory:/docker/c1", "0::/docker/c1"])
    assert found.v2 == node.folder / "unified"
    assert found.v1 == {"memory": node.folder / "memory", "pids": node.folder / "pids/inner"}


def test_each_v1_controller_has_the_services_group_in_its_own_hierarchy(node: Node) -> None:
    mounts = [node.v2(), node.v1("memory", "api/one"), node.v1("pids")]
    found = node.find(mounts, ["8:pids:/", "4:memory:/api/one", "1:name=systemd:/x", "0::/"])
    assert found.v1 == {"memory": node.folder / "memory/api/one", "pids": node.folder / "pids"}
    assert set(found.roots) == {node.folder / name for name in ("unified", "memory", "pids")}


def test_the_error_on_a_node_without_cgroup_v2_says_to_mount_it(node: Node) -> None:
    with pytest.raises(CgroupError) as raised:
        node.find([node.v1("memory")], ["4:memory:/"])
    assert raised.value.hint == "mount -t cgroup2 none /sys/fs/cgroup"


def test_a_read_only_group_is_told_apart_from_a_missing_one(node: Node) -> None:
    with pytest.raises(CgroupError, match="read-only") as raised:
        node.find([V2.format(root="/", point="/proc/sys/kernel/ns_last_pid")], ["0::/inside"])
    assert raised.value.hint is not None and "remount" in raised.value.hint


def test_all_groups_of_a_name_are_found_at_any_depth(node: Node) -> None:
    found = node.find([node.v2("a/b"), node.v1("pids")], ["8:pids:/", "0::/a/b"])
    wanted = [
        node.folder / "unified/holdfast-x",
        node.folder / "unified/a/b/holdfast-x",
        node.folder / "pids/holdfast-x",
    ]
    for folder in (*wanted, node.folder / "unified/holdfast-xy"):
        folder.mkdir()
    assert sorted(found.named("holdfast-x")) == sorted(wanted)
