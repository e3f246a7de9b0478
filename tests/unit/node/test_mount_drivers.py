"""The exact arguments and options of each driver's mounts."""

from __future__ import annotations

from pathlib import Path

from actors.node import drivers
from actors.node.drivers import Driver

ARCHIVE = Path("/var/cache/archives/a b.sqsh")


def test_kernel_squashfs_is_read_only_without_setuid_and_devices() -> None:
    assert drivers.kernel_squashfs(ARCHIVE, Path("/lowers/ab")) == [
        "mount", "-t", "squashfs", "-o", "loop,ro,nosuid,nodev", "/var/cache/archives/a b.sqsh", "/lowers/ab",
    ]  # fmt: skip


def test_kernel_overlay_names_no_path_of_the_node() -> None:
    assert drivers.kernel_overlay(Driver.KERNEL) == [
        "mount", "-t", "overlay", "-o",
        "nosuid,nodev,lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=on,index=on,xino=on",
        "overlay", "merged",
    ]  # fmt: skip


def test_an_overlay_over_idmapped_clones_finds_them_in_the_layers_folder() -> None:
    assert drivers.kernel_overlay(Driver.KERNEL, idmapped=True)[4] == (
        "nosuid,nodev,lowerdir=idmapped/lower,upperdir=idmapped/layer/upper,workdir=idmapped/layer/work,"
        "redirect_dir=on,index=on,xino=on"
    )


def test_an_overlay_over_several_archives_has_the_newest_on_top() -> None:
    options = "redirect_dir=on,index=on,xino=on"
    assert drivers.overlay_data(Driver.KERNEL, 3) == (
        f"lowerdir=lower2:lower1:lower,upperdir=upper,workdir=work,{options}"
    )
    assert drivers.overlay_data(Driver.KERNEL, 2, idmapped=True) == (
        "lowerdir=idmapped/lower1:idmapped/lower,upperdir=idmapped/layer/upper,workdir=idmapped/layer/work," + options
    )


def test_fuse_squashfs_stays_in_the_foreground_and_dies_with_its_parent() -> None:
    assert drivers.fuse_squashfs(ARCHIVE) == [
        "setpriv", "--pdeathsig", "KILL",
        "squashfuse_ll", "-f", "-o", "ro,nosuid,nodev,allow_other,default_permissions",
        "/var/cache/archives/a b.sqsh", "lower",
    ]  # fmt: skip


def test_fuse_overlay_writes_through() -> None:
    assert drivers.fuse_overlay() == [
        "setpriv", "--pdeathsig", "KILL",
        "fuse-overlayfs", "-f", "-o", "nosuid,nodev,lowerdir=lower,upperdir=upper,workdir=work,writeback=0", "merged",
    ]  # fmt: skip


def test_overlay_options_differ_between_kernel_and_fuse_drivers() -> None:
    assert [(driver, driver.overlay_options) for driver in Driver] == [
        ("kernel", "redirect_dir=on,index=on,xino=on"),
        ("mixed", "redirect_dir=on,index=on,xino=on"),
        ("rootless", "userxattr,index=on,xino=on"),
        ("fuse", "writeback=0"),
    ]


def test_only_the_fuse_driver_limits_names() -> None:
    assert [driver.max_name_bytes for driver in Driver] == [255, 255, 255, 251]
