"""Reading /proc/self/mountinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.node import mountinfo
from actors.node.mountinfo import Mount

ROOT = b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n"


def test_every_field_is_read() -> None:
    line = b"45 27 0:39 /sub /box/merged rw,nosuid shared:7 master:2 - overlay overlay rw,lowerdir=lower,index=on\n"
    assert mountinfo.parse(line) == [
        Mount(
            id=45,
            parent_id=27,
            device="0:39",
            root="/sub",
            point=Path("/box/merged"),
            options=frozenset({"rw", "nosuid"}),
            fs_type="overlay",
            source="overlay",
            super_options=("rw", "lowerdir=lower", "index=on"),
        )
    ]


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        (rb"/a\040b", "/a b"),
        (rb"/a\011b", "/a\tb"),
        (rb"/a\012b", "/a\nb"),
        (rb"/a\134040b", "/a\\040b"),
        (rb"/a\043b", "/a#b"),
        (b"/a\rb", "/a\rb"),
        (b"/a\xffb", "/a\udcffb"),
    ],
)
def test_escaped_and_non_utf8_names_are_decoded(escaped: bytes, plain: str) -> None:
    (mount,) = mountinfo.parse(b"45 27 0:39 / %s rw - tmpfs tmpfs rw\n" % escaped)
    assert mount.point == Path(plain)


def test_mounts_under_a_path_come_deepest_and_newest_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _serve(
        monkeypatch,
        tmp_path,
        ROOT
        + b"40 27 0:1 / /box rw - tmpfs a rw\n41 40 0:2 / /box/b/c rw - tmpfs b rw\n"
        + b"42 41 0:3 / /box/b/c rw - tmpfs c rw\n43 27 0:4 / /boxes rw - tmpfs d rw\n",
    )
    assert [mount.id for mount in mountinfo.mounts_under(Path("/box"))] == [42, 41, 40]


def test_find_returns_the_topmost_of_stacked_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _serve(
        monkeypatch,
        tmp_path,
        ROOT + b"42 40 0:3 / /box rw - tmpfs top rw\n40 27 0:1 / /box rw - tmpfs below rw\n",
    )
    found = mountinfo.find(Path("/box"))
    assert found is not None
    assert found.source == "top"


def test_find_ignores_parents_and_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _serve(monkeypatch, tmp_path, ROOT + b"40 27 0:1 / /box/merged rw - tmpfs a rw\n")
    assert mountinfo.find(Path("/box")) is None


def _serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: bytes) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(text)
    monkeypatch.setattr(mountinfo, "_MOUNTINFO", table)
