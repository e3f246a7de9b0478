"""The tools' arguments, and the checks that detect when a tool reports success falsely."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from actors.node import bubblewrap, squashfs
from actors.node.boxed_tools import check_undisturbed
from actors.node.bubblewrap import Bind, Box, Identity
from actors.node.errors import (
    ArchiveError,
    BoxError,
    NodeError,
    NoMemoryLeftError,
    NoProcessesLeftError,
    NoSpaceLeftError,
    ToolError,
    ToolKilledError,
    TreeError,
)
from actors.node.process import Ended

FINE = Ended(0, b"", b"")


def image(
    path: Path, *, inodes: int = 5, magic: int = 0x73717368, used: int = 96, major: int = 4, cut: int = 96
) -> Path:
    head = struct.pack("<IIIIIHHHHHHQQ", magic, inodes, 0, 0, 0, 0, 0, 0, 0, major, 0, 0, used)
    path.write_bytes(head.ljust(96, b"\0")[:cut])
    return path


def test_a_faultless_archive_is_accepted(tmp_path: Path) -> None:
    made = squashfs.verify_creation(FINE, image(tmp_path / "a"), inodes=5)
    assert (made.inodes, made.bytes_used) == (5, 96)
    acl = b"Unrecognised xattr prefix system.posix_acl_access\n\n"
    squashfs.verify_creation(Ended(0, b"", acl), image(tmp_path / "a"), inodes=5)


@pytest.mark.parametrize(
    "ended",
    [
        Ended(1, b"", b""),
        Ended(-9, b"", b""),
        Ended(0, b"", b"Failed to read file x, creating empty file\n"),
        Ended(0, b"", b"dir 2047 File name too long, ignoring\n"),
        Ended(0, b"", b"Unrecognised xattr prefix system.posix_acl_access\nCannot stat x\n"),
    ],
)
def test_a_complaint_is_a_failure_whatever_the_exit_status(tmp_path: Path, ended: Ended) -> None:
    with pytest.raises(ArchiveError):
        squashfs.verify_creation(ended, image(tmp_path / "a"), inodes=5)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("words", [b"No space left on device", b"Disk quota exceeded"])
def test_a_full_disk_is_recognized(tmp_path: Path, stream: str, words: bytes) -> None:
    said = b"Write failed because " + words + b"\n"
    ended = Ended(1, said if stream == "stdout" else b"", said if stream == "stderr" else b"")
    with pytest.raises(NoSpaceLeftError):
        squashfs.verify_creation(ended, tmp_path / "missing", inodes=5)
    with pytest.raises(NoSpaceLeftError):
        squashfs.verify_extraction(ended)


@pytest.mark.parametrize(
    "wrong", [{"inodes": 1}, {"inodes": 6}, {"magic": 0}, {"used": 97}, {"major": 3}, {"cut": 40}, {"cut": 0}]
)
def test_a_torn_or_incomplete_archive_is_refused_though_the_tool_succeeded(
    tmp_path: Path, wrong: dict[str, int]
) -> None:
    with pytest.raises(ArchiveError):
        squashfs.verify_creation(FINE, image(tmp_path / "a", **wrong), inodes=5)


@pytest.mark.parametrize("ended", [Ended(1, b"", b""), Ended(0, b"", b"create_inode: failed\n")])
def test_a_failed_extraction_blames_the_tool_unless_told_to_blame_the_archive(ended: Ended) -> None:
    squashfs.verify_extraction(FINE)
    with pytest.raises(ToolError):
        squashfs.verify_extraction(ended)
    with pytest.raises(ArchiveError):
        squashfs.verify_extraction(ended, blamed=ArchiveError)


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (Ended(-9, b"", b""), ToolKilledError),
        (Ended(128 + 9, b"", b""), ToolKilledError),
        (Ended(1, b"", b"FATAL ERROR: Out of memory (read_block)\n"), NoMemoryLeftError),
        (Ended(1, b"", b"read_id_table: failed to allocate id table\n"), NoMemoryLeftError),
        (Ended(1, b"", b"FATAL ERROR: Failed to create thread\n"), NoProcessesLeftError),
        (Ended(1, b"", b"bwrap: Can't fork for pid 1: Resource temporarily unavailable\n"), NoProcessesLeftError),
    ],
)
def test_a_tool_that_the_node_killed_or_starved_is_told_apart_from_one_that_failed(
    ended: Ended, kind: type[NodeError]
) -> None:
    for has_run in (True, False):
        with pytest.raises(kind):
            check_undisturbed(ended, tool="unsquashfs", has_run=has_run)


def test_an_unbuilt_box_is_an_error_of_the_box_and_not_of_the_tool() -> None:
    with pytest.raises(BoxError, match="RTM_NEWADDR") as raised:
        check_undisturbed(Ended(1, b"", b"bwrap: loopback: Failed RTM_NEWADDR\n"), tool="unsquashfs", has_run=False)
    assert raised.value.hint == "Run `holdfast doctor` on the node."
    check_undisturbed(Ended(1, b"No space left on device", b"Can't find a valid SQUASHFS superblock\n"), tool="x")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (b"plain/a_b-c9", b"plain/a_b-c9\n"),
        (b"a b.x", b"a\\ b\\.x\n"),
        (b"*", b"\\\\*\n"),
        (b"#x", b"\\\\#x\n"),
        (b" x", b"\\\\ x\n"),
        (b"\\n", b"\\\\\\n\n"),
        (b"a\\n", b"a\\\\n\n"),
        (b"\xff", b"\xff\n"),
        (b"[a]?", b"\\\\[a\\]\\?\n"),
    ],
)
def test_special_characters_in_excluded_names_are_escaped(path: bytes, line: bytes) -> None:
    assert squashfs.exclude_lines([path], {}) == (line, [])


def test_names_with_newlines_become_patterns_on_the_command_line() -> None:
    assert squashfs.exclude_lines([b"a\nb", b"c"], {}) == (b"c\n", ["a\\\nb"])
    assert squashfs.exclude_lines([], {}) == (b"", [])


@pytest.mark.parametrize("names", [[b"\n%d" % n for n in range(4001)], [b"\n" * 255] * 200])
def test_more_names_with_newlines_than_a_command_can_have_are_refused(names: list[bytes]) -> None:
    with pytest.raises(TreeError, match="hold line feeds"):
        squashfs.exclude_lines(names, {})


def test_percentages_only_rise_wherever_the_output_is_split() -> None:
    seen: list[int] = []
    read = squashfs.percent_reader(seen.append)
    for piece in (b"[==  ] 10/100  10%\r", b"9%", b"\r 50%\r50%", b"", b"no", b"999%", b"100%"):
        read(piece)
    assert seen == [10, 50, 100]


def test_names_are_found_in_a_listing_wherever_it_is_split() -> None:
    text = b"squashfs-root\nsquashfs-root/a\nsquashfs-root/a/.wh.b\nsquashfs-root/c\n"
    for size in (1, 7, 1000):
        reader = squashfs.NameReader(lambda name: name.startswith(b".wh."))
        for at in range(0, len(text), size):
            reader.read(text[at : at + size])
        assert reader.found == b".wh.b"
    assert squashfs.NameReader(bool).found is None


def test_the_tools_command_lines() -> None:
    processors = str(os.cpu_count())
    options = {"uid": 7, "compression": "zstd", "level": 1, "memory_bytes": 2**28}
    assert squashfs.mksquashfs("/o", excludes="/e", **options) == [  # type: ignore[arg-type]
        "mksquashfs", ".", "/o", "-noappend", "-exit-on-error", "-no-recovery", "-progress", "-quiet",
        "-comp", "zstd", "-b", "256K", "-mkfs-time", "0", "-xattrs", "-Xcompression-level", "1",
        "-mem", "256M", "-processors", processors, "-force-uid", "7", "-force-gid", "7", "-wildcards", "-ef", "/e",
    ]  # fmt: skip
    without = squashfs.mksquashfs("/o", excludes=None, duplicates=False, **options)  # type: ignore[arg-type]
    assert without[-1] == "-no-duplicates"
    assert squashfs.unsquashfs("/a", "/t") == [
        "unsquashfs", "-no-progress", "-quiet", "-user-xattrs", "-processors", processors, "-dest", "/t", "/a",
    ]  # fmt: skip


BOX = Box(uid=7, hostname="host", binds=())
FDS = {"seccomp": 3, "passwd": 4, "group": 5, "hosts": 6}


def test_a_commands_box_has_every_restriction() -> None:
    args = bubblewrap.inner(BOX, [Bind(Path("/n"), "/w", True)], identity=Identity.COMMAND, cwd="/w", env={}, fds=FDS)
    assert args[:13] == [
        "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL",
        "--new-session", "--die-with-parent", "--hostname", "host",
    ]  # fmt: skip
    assert args[13] == "--clearenv"
    locked = ["--remount-ro", "/proc", "--remount-ro", "/"]
    assert args[-11:-8] == ["--bind", "/sandbox/0", "/w"]
    assert args[-8:] == [*locked, "--chdir", "/w", "--seccomp", "3"]
    assert "--cap-add" not in args and "--share-net" not in args and "/n" not in args


def test_a_reader_and_a_keeper_have_only_the_capabilities_that_they_need() -> None:
    reader = bubblewrap.inner(BOX, [], identity=Identity.READER, cwd="/", env={}, fds=FDS)
    keeper = bubblewrap.keeper([Bind(Path("/n"), "/p")], cwd="/")

    def added(args: list[str]) -> set[str]:
        return {args[at + 1] for at, word in enumerate(args) if word == "--cap-add"}

    assert added(reader) == {"CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE", "CAP_FOWNER"}
    assert added(keeper) == {"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD"}
    assert keeper[keeper.index("/n") - 1 : keeper.index("/n") + 2] == ["--ro-bind", "/n", "/p"]
    entering = bubblewrap.keeper([], cwd="/", enters=True)
    assert added(entering) == added(keeper) | {"CAP_SYS_ADMIN"}
    assert bubblewrap.keeping_in(5) == [
        "nsenter", "--user=/proc/self/fd/5", "--",
        "setpriv", "--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+mknod", "--",
    ]  # fmt: skip


def test_only_commands_get_the_network_and_only_if_it_is_allowed() -> None:
    open_box = Box(uid=7, hostname="host", binds=(), network=True)
    for identity, shared in ((Identity.COMMAND, True), (Identity.READER, False)):
        args = bubblewrap.inner(open_box, [], identity=identity, cwd="/", env={}, fds=FDS)
        assert ("--share-net" in args) is shared


def test_the_uid_is_dropped_for_good() -> None:
    assert bubblewrap.drop_to(7) == [
        "setpriv", "--reuid=7", "--regid=7", "--clear-groups", "--no-new-privs", "--",
    ]  # fmt: skip
