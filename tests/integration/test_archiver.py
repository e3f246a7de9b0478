"""The archiver: an archive holds exactly the content of the tree, or there is no archive."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.node import process, squashfs
from actors.node.archiver import Archiver
from actors.node.bubblewrap import Bind, Box
from actors.node.errors import (
    ArchiveError,
    NodeError,
    NoSpaceLeftError,
    PathMissingError,
    ToolKilledError,
    ToolTimeoutError,
    TreeError,
)
from actors.node.mounting import sweep
from actors.node.packing import ArchiveRequest, PackedArchive
from actors.node.survey import Limits, survey
from actors.node.tree import Tree
from tests.support.mount_leaks import children, wait_until
from tests.support.random_trees import FUTURE_S, KINDS, LEFT_OUT, random_tree
from tests.support.sandboxes import UID, Background
from tests.support.trees import MINUTES_OF_READING, fingerprint, make_interesting_tree

MIB = 2**20
LIMITS = Limits(inodes=20_000, source_bytes=2**30, hole_bytes=2**30, depth=300)
HOSTILE = [
    b"with space", b"new\nline", b"-dash", b"--help", b"'q' \"d\" `b` $x", b"\xff\xfe", b"x" * 255, b"back\\slash",
    b"*", b"a?", b"[x]", b"!(x)", b"#hash", b" lead", b"trail ", b"\x01\x1b[0m", b"...", b"end\n", b"\\n", b"{a,b}",
    b"+(y)", b"@(z)", "Grüße".encode(),
]  # fmt: skip


class Setup:
    """An archiver over a tree with one top folder."""

    def __init__(self, folder: Path, limits: Limits = LIMITS) -> None:
        self.tree = Tree(folder / "root", tops=("/workspace",), uid=UID)
        self.tree.prepare()
        self.work = self.tree.root / "workspace"
        self.box = Box(uid=UID, hostname="a-box", binds=(Bind(self.work, "/workspace", writable=True),))
        self.archiver = Archiver(self.box, self.tree, limits=limits, memory_bytes=64 * MIB)
        self.folder = folder
        self._count = 0

    def spool(self) -> Path:
        self._count += 1
        spool = self.folder / f"spool{self._count}"
        spool.mkdir(mode=0o711)
        return spool

    def create(self, spool: Path | None = None, **options: Any) -> PackedArchive:
        given: dict[str, Any] = {
            "directory": "/workspace",
            "spool": spool or self.spool(),
            "compression": "zstd",
            "level": 1,
            "timeout_s": 100,
            "cancelled": threading.Event(),
        }
        return self.archiver.create(ArchiveRequest(**{**given, **options}))

    def extracted(self, made: PackedArchive) -> Path:
        parent = self.spool()
        self.archiver.extract(made.path, parent, "tree", cancelled=threading.Event())
        return parent / "tree"


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def put(folder: Path, name: bytes, data: bytes = b"data") -> None:
    path = os.path.join(os.fsencode(folder), name)
    with open(path, "wb") as file:
        file.write(data)
    os.chown(path, UID, UID)


def names(folder: Path) -> set[bytes]:
    return set(os.listdir(os.fsencode(folder)))


def test_the_interesting_tree_is_archived_and_unpacked_exactly(setup: Setup) -> None:
    make_interesting_tree(setup.work / "tree", UID)
    made = setup.create()
    assert fingerprint(setup.extracted(made) / "tree") == fingerprint(setup.work / "tree")
    assert squashfs.superblock(made.path).inodes == made.found.inodes


def test_equal_trees_give_equal_archives(setup: Setup) -> None:
    make_interesting_tree(setup.work / "tree", UID)
    assert setup.create().path.read_bytes() == setup.create().path.read_bytes()


@pytest.mark.parametrize(("files", "searched"), [(100, True), (9_000, False)])
def test_many_small_files_of_one_size_are_archived_without_a_search_for_duplicates(
    setup: Setup, files: int, searched: bool
) -> None:
    for number in range(files):
        put(setup.work, b"%d" % number, b"%05d" % number)
    made = setup.create()
    said = subprocess.run(["unsquashfs", "-s", made.path], check=True, capture_output=True, text=True).stdout
    assert ("Duplicates are removed" in said, "Duplicates are not removed" in said) == (searched, not searched)
    unpacked = setup.extracted(made)
    assert all((unpacked / f"{number}").read_text() == f"{number:05d}" for number in range(files))


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:12]))
def test_a_hostile_name_is_excluded_exactly_by_a_socket_of_that_name(setup: Setup, name: bytes) -> None:
    for other in (b"a", b"ab", b"x", b"n", b"keep me", b"y", b"z", b"end", b"lead", b"b"):
        put(setup.work, other)
    expected = names(setup.work) - {name}
    folder = os.open(setup.work, os.O_RDONLY)
    server = socket.socket(socket.AF_UNIX)
    try:
        if len(name) < 80:
            server.bind(b"/proc/self/fd/%d/" % folder + name)
        else:
            server.bind(b"/proc/self/fd/%d/short" % folder)
            os.rename(b"short", name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        server.close()
        os.close(folder)
    made = setup.create()
    assert made.found.sockets == 1
    assert names(setup.extracted(made)) == expected


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:12]))
def test_a_hostile_name_is_kept_and_excluded_by_a_pattern(setup: Setup, name: bytes) -> None:
    (setup.work / "keep").mkdir()
    (setup.work / "drop").mkdir()
    for folder in (setup.work / "keep", setup.work / "drop"):
        put(folder, name)
        put(folder, b"other")
    made = setup.create(excludes=["/drop/*", "!/drop/other"])
    found = setup.extracted(made)
    assert names(found / "keep") == {name, b"other"}
    assert names(found / "drop") == {b"other"}


def test_many_excluded_names_with_newlines_fit(setup: Setup) -> None:
    for number in range(40):
        put(setup.work, b"a\n%d" % number)
    put(setup.work, b"kept")
    assert names(setup.extracted(setup.create(excludes=["a*"]))) == {b"kept"}


@pytest.mark.parametrize("seed", range(6))
def test_many_names_are_excluded_exactly_whatever_they_have_in_common(setup: Setup, seed: int) -> None:
    chance = random.Random(seed)
    letters = [b"a", b"b", b".", b"\n", b"*", b"\\", "ü".encode(), b"\xff", b"[", b" "]
    made = {b"".join(chance.choices(letters, k=chance.randint(1, 6))) for _ in range(2_500)} - {b".", b".."}
    first, last = chance.choice(letters[:3]), chance.choice(letters[:3])
    (setup.work / "in").mkdir()
    for name in made:
        for folder in (setup.work, setup.work / "in"):
            put(folder, name)
    patterns = [[first.decode() + "*"], ["*" + last.decode()], ["*b*"]][seed % 3]
    matched: Callable[[bytes], bool] = [
        lambda name: name.startswith(first), lambda name: name.endswith(last), lambda name: b"b" in name,
    ][seed % 3]  # fmt: skip
    left = {name for name in made if not matched(name)}
    archived = setup.create(excludes=patterns)
    found = setup.extracted(archived)
    assert names(found) - {b"in"} == left
    assert names(found / "in") == left
    lines, words = squashfs.exclude_lines(archived.found.excluded, archived.found.exclusions)
    assert seed % 3 == 2 or lines.count(b"\n") + len(words) < len(archived.found.excluded) / 2


def test_everything_can_be_excluded(setup: Setup) -> None:
    put(setup.work, b"file")
    made = setup.create(excludes=["*"])
    assert made.found.inodes == 1
    assert names(setup.extracted(made)) == set()


def test_attributes_that_an_archive_cannot_keep_are_counted(setup: Setup) -> None:
    put(setup.work, b"acl")
    subprocess.run(["setfacl", "-m", "u:12345:r", setup.work / "acl"], check=True)
    put(setup.work, b"attribute")
    os.setxattr(setup.work / "attribute", "user.mine", b"kept")
    made = setup.create()
    assert (made.found.acls, made.found.other_xattrs) == (1, 0)
    assert os.getxattr(setup.extracted(made) / "attribute", "user.mine") == b"kept"


def test_links_to_files_outside_count_as_files(setup: Setup) -> None:
    put(setup.folder, b"outside")
    put(setup.work, b"one")
    os.link(setup.folder / "outside", setup.work / "in")
    os.link(setup.work / "one", setup.work / "two")
    os.link(setup.work / "one", setup.folder / "out")
    made = setup.create()
    assert (made.found.inodes, made.found.files) == (3, 2)
    found = setup.extracted(made)
    assert (found / "one").stat().st_ino == (found / "two").stat().st_ino


@pytest.mark.parametrize("mtime_s", [1_000_000_000, FUTURE_S], ids=["past", "future"])
@pytest.mark.parametrize("kind", KINDS)
def test_hard_links_of_every_kind_are_counted_as_one(setup: Setup, kind: str, mtime_s: int) -> None:
    KINDS[kind](setup.work / "first")
    for name in ("second", "third", "excluded"):
        os.link(setup.work / "first", setup.work / name, follow_symlinks=False)
    os.link(setup.work / "first", setup.folder / "outside", follow_symlinks=False)
    os.chown(setup.work / "first", UID, UID, follow_symlinks=False)
    os.utime(setup.work / "first", (0, mtime_s), follow_symlinks=False)  # reading changes the time of access like this
    made = setup.create(excludes=["/excluded"])
    found = setup.extracted(made)
    if kind in LEFT_OUT:
        assert (made.found.inodes, made.found.sockets + made.found.devices) == (1, 1)
        assert names(found) == set()
    else:
        assert made.found.inodes == 2
        assert {place.lstat().st_ino for place in found.iterdir()} == {(found / "first").lstat().st_ino}
        assert names(found) == {b"first", b"second", b"third"}
        assert (found / "first").lstat().st_mtime == mtime_s


@pytest.mark.parametrize("seed", range(30))
def test_any_links_of_any_kind_are_counted_as_mksquashfs_counts_them(setup: Setup, seed: int) -> None:
    rng = random.Random(seed)
    random_tree(setup.work, rng, outside=setup.folder)
    ignoring = rng.random() < 0.5
    if ignoring:  # the walk reads it, under both names
        put(setup.work, b".gitignore", b"*.x\n")
        os.link(setup.work / ".gitignore", setup.work / "another name of it")
    made = setup.create(gitignore=ignoring)
    found = setup.extracted(made)
    expected = {
        os.fsencode(path.relative_to(setup.work)): (path.lstat().st_ino, stat.S_IFMT(path.lstat().st_mode))
        for path in setup.work.rglob("*")
        if (path.is_symlink() or path.is_file() or path.is_dir() or path.is_fifo())
        and not (ignoring and path.name.endswith(".x"))
    }
    assert set(fingerprint(found)) == {b"", *expected}
    for row, entry in fingerprint(found).items():
        if row:
            inode, kind = expected[row]
            assert entry.kind == kind
            if not stat.S_ISDIR(kind):
                assert set(entry.links) == {name for name, (other, _) in expected.items() if other == inode}


def test_a_file_that_two_mounts_show_counts_as_mksquashfs_counts_it(setup: Setup) -> None:
    (setup.work / "a").mkdir()
    (setup.work / "b").mkdir()
    put(setup.work / "a", b"file")
    os.chown(setup.work / "a", UID, UID)
    subprocess.run(["mount", "--bind", setup.work / "a", setup.work / "b"], check=True)
    try:
        assert names(setup.extracted(setup.create()) / "b") == {b"file"}
    finally:
        sweep(setup.work)


def test_a_file_with_more_links_than_sixteen_bits_hold_counts_as_one(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=0,size=200m", "tmpfs", tmp_path / "root"], check=True)
    try:
        setup = Setup(tmp_path)
        put(setup.work, b"file")
        folder = os.open(setup.work, os.O_RDONLY)
        for number in range(66_000):
            os.link("file", f"{number}", src_dir_fd=folder, dst_dir_fd=folder)
        os.close(folder)
        made = setup.create()
        assert made.found.inodes == squashfs.superblock(made.path).inodes == 2
    finally:
        sweep(tmp_path)


@pytest.mark.parametrize(
    ("mtime_s", "far"),
    [(-1, 1), (-2_000_000_000, 1), (0, 0), (2**31, 0), (2**32 - 1, 0), (2**32, 1)],
)
@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "root"])
def test_times_that_an_archive_cannot_hold_are_counted(setup: Setup, kind: str, mtime_s: int, far: int) -> None:
    place = setup.work if kind == "root" else setup.work / kind
    if kind == "file":
        place.touch()
        os.link(place, setup.work / "link")
    elif kind == "directory":
        place.mkdir()
    elif kind == "symlink":
        place.symlink_to("x")
    os.utime(place, ns=(0, mtime_s * 10**9 + 999_999_999), follow_symlinks=False)
    made = setup.create()
    assert made.found.far_times == far
    if not far:
        found = setup.extracted(made)
        assert (found if kind == "root" else found / kind).lstat().st_mtime == mtime_s


@pytest.mark.parametrize("flag", ["d", "A", "S", "i", "a"])
@pytest.mark.parametrize("kind", ["file", "directory", "root"])
def test_flags_that_an_archive_cannot_hold_are_counted(setup: Setup, kind: str, flag: str) -> None:
    place = setup.work if kind == "root" else setup.work / kind
    if kind == "file":
        put(setup.work, b"file")
    elif kind == "directory":
        place.mkdir()
    subprocess.run(["chattr", f"+{flag}", place], check=True)
    try:
        assert setup.create().found.flags == 1
    finally:
        subprocess.run(["chattr", f"-{flag}", place], check=True)


def test_attributes_of_a_symbolic_link_and_capabilities_are_counted(setup: Setup) -> None:
    (setup.work / "link").symlink_to("x")
    os.setxattr(setup.work / "link", "trusted.mine", b"lost", follow_symlinks=False)
    put(setup.work, b"able")
    subprocess.run(["setcap", "cap_net_raw+ep", setup.work / "able"], check=True)
    assert setup.create().found.other_xattrs == 2


@pytest.mark.parametrize("mode", [0, 0o400, 0o7777])
def test_files_and_directories_of_any_mode_are_archived(setup: Setup, mode: int) -> None:
    (setup.work / "d").mkdir()
    put(setup.work / "d", b"f")
    os.chown(setup.work / "d", UID, UID)
    (setup.work / "d" / "f").chmod(mode)
    (setup.work / "d").chmod(mode)
    assert fingerprint(setup.extracted(setup.create()) / "d") == fingerprint(setup.work / "d")


def test_an_unreadable_file_of_another_owner_is_an_error_and_never_an_empty_file(setup: Setup) -> None:
    put(setup.work, b"foreign")
    os.chown(setup.work / "foreign", 0, 0)
    (setup.work / "foreign").chmod(0o600)
    spool = setup.spool()
    with pytest.raises(ArchiveError, match="status 1"):
        setup.create(spool)
    assert not (spool / "data.sqsh").exists()


def sparse(work: Path) -> None:
    with open(work / "sparse", "wb") as file:
        file.truncate(8 * 2**40)


def many(work: Path) -> None:
    for number in range(2001):
        (work / str(number)).touch()


def large(work: Path) -> None:
    (work / "large").write_bytes(bytes(3 * MIB))


def deep(work: Path) -> None:
    subprocess.run(["sh", "-c", "for i in $(seq 320); do mkdir d; cd -P d; done"], cwd=work, check=True)


@pytest.mark.parametrize("bomb", [sparse, many, large, deep])
def test_a_bomb_is_refused_before_any_tool_runs(tmp_path: Path, bomb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "start", None)
    setup = Setup(tmp_path, Limits(inodes=2000, source_bytes=2 * MIB, hole_bytes=MIB, depth=300))
    bomb(setup.work)
    with pytest.raises(TreeError):
        setup.create()


def test_the_deepest_tree_that_the_settings_allow_is_archived(tmp_path: Path) -> None:
    setup = Setup(tmp_path, Limits(inodes=20_000, source_bytes=2**30, hole_bytes=2**30, depth=768))
    subprocess.run(["sh", "-c", "for i in $(seq 760); do mkdir d; cd -P d; done"], cwd=setup.work, check=True)
    assert setup.create().found.inodes == 761


def make_path(folder: Path, size: int) -> None:
    """Makes a file whose path, relative to the folder, has so many bytes, in directories with the longest names."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range((size - 1) // 256):
        os.mkdir("n" * 255, dir_fd=fd)
        below = os.open("n" * 255, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("f" * (size - size // 256 * 256 or 255), os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def test_the_longest_paths_that_are_archived_can_be_unpacked_anywhere(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    make_path(setup.work, 4000)
    made = setup.create()
    assert made.found.inodes == 17
    parent = tmp_path / ("p" * 200) / ("q" * 200)
    parent.mkdir(parents=True)
    setup.archiver.extract_stack([made.path] * 2, parent, "tree", setup.spool(), cancelled=threading.Event())
    shown = os.open(parent / "tree", os.O_RDONLY)
    assert os.stat("n" * 255, dir_fd=shown).st_uid == UID
    assert survey(shown, limits=LIMITS).inodes == 17
    os.close(shown)


def test_a_path_that_no_copy_could_be_restored_with_is_refused_unless_it_is_left_out(setup: Setup) -> None:
    make_path(setup.work, 4001)
    with pytest.raises(TreeError, match="A path in the directory is longer than 4000 bytes"):
        setup.create()
    assert setup.create(excludes=["f*"]).found.inodes == 16


def test_a_file_that_grows_without_end_meets_the_time_limit(setup: Setup) -> None:
    put(setup.work, b"growing")
    spool = setup.spool()
    with pytest.raises(ToolTimeoutError):
        setup.create(spool, timeout_s=2, on_survey=lambda _: os.truncate(setup.work / "growing", MINUTES_OF_READING))
    assert not (spool / "data.sqsh").exists()
    assert wait_until(lambda: "bwrap" not in children().values())


def test_the_time_limit_includes_the_walk(setup: Setup) -> None:
    put(setup.work, b"file")
    with pytest.raises(TreeError, match="could not be walked in the time"):
        setup.create(timeout_s=0)


def mksquashfs_of(folder: Path) -> int | None:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "comm").read_text().strip() == "mksquashfs":
                mounts = (entry / "mountinfo").read_text()
                if str(folder) in mounts:
                    return int(entry.name)
        except OSError:
            continue
    return None


def catches(pid: int, number: signal.Signals) -> bool:
    """True if a process has installed a handler for a signal. Source: proc_pid_status(5), SigCgt."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_killed_mksquashfs_leaves_no_archive(setup: Setup, how: signal.Signals) -> None:
    setup = Setup(setup.folder / "other", replace(LIMITS, source_bytes=2**40, hole_bytes=2**40))
    put(setup.work, b"minutes")
    os.truncate(setup.work / "minutes", MINUTES_OF_READING)
    spool = setup.spool()
    making = Background(lambda: setup.create(spool, timeout_s=1000))
    pid: list[int] = []

    def found() -> bool:
        seen = mksquashfs_of(spool)
        pid.extend([seen] if seen else [])
        return bool(seen)

    assert wait_until(found)
    if how is signal.SIGTERM:
        assert wait_until(lambda: catches(pid[0], how))
    os.kill(pid[0], how)
    assert isinstance(making.error(), ArchiveError if how is signal.SIGTERM else ToolKilledError)
    assert not (spool / "data.sqsh").exists()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "small"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", point], check=True)
    yield point
    sweep(point)


def test_a_full_disk_is_named_when_packing_and_unpacking(setup: Setup, small: Path) -> None:
    put(setup.work, b"large", os.urandom(6 * MIB))
    with pytest.raises(NoSpaceLeftError):
        setup.create(small)
    made = setup.create()
    with pytest.raises(NoSpaceLeftError):
        setup.archiver.extract(made.path, small, "tree", cancelled=threading.Event())


def test_a_tree_that_changed_after_the_walk_is_refused(setup: Setup) -> None:
    put(setup.work, b"one")
    with pytest.raises(ArchiveError, match="holds 3 inodes, the directory 2"):
        setup.create(on_survey=lambda _: put(setup.work, b"two"))
    with pytest.raises(NodeError):
        setup.create(on_survey=lambda _: (setup.work / "one").unlink())


def test_a_missing_directory_is_named_in_the_error(setup: Setup) -> None:
    with pytest.raises(PathMissingError):
        setup.create(directory="/workspace/none")


def test_a_cancelled_archive_ends_at_once(setup: Setup) -> None:
    setup = Setup(setup.folder / "other", replace(LIMITS, source_bytes=2**40, hole_bytes=2**40))
    put(setup.work, b"minutes")
    os.truncate(setup.work / "minutes", MINUTES_OF_READING)
    cancelled = threading.Event()
    spool = setup.spool()
    setup.create(spool, cancelled=cancelled, timeout_s=1000, on_survey=lambda _: cancelled.set())
    assert not (spool / "data.sqsh").exists()


def test_a_file_system_that_answers_with_errors_gives_no_archive(setup: Setup) -> None:
    put(setup.work, b"file", os.urandom(MIB))
    (setup.work / "mnt").mkdir()
    subprocess.run(["mksquashfs", str(setup.work), str(setup.folder / "a.sqsh"), "-quiet"],
                   check=True, capture_output=True)  # fmt: skip
    argv = ["squashfuse_ll", "-f", "-o", "allow_other", str(setup.folder / "a.sqsh"), str(setup.work / "mnt")]
    daemon = process.start(argv)
    try:
        assert wait_until(lambda: (setup.work / "mnt" / "file").exists())
        daemon.kill()
        daemon.communicate()
        with pytest.raises(TreeError, match="ENOTCONN"):
            setup.create()
    finally:
        sweep(setup.work)


def random_patterns(rng: random.Random) -> list[str]:
    words = ["a", "b", "ab", "*", "?", "a*", "*.x", "[ab]", "**", "a.x", "\\*", "!a", "#a", "b ", "c\\ "]
    made = []
    for _ in range(rng.randint(1, 5)):
        pattern = "/".join(rng.choice(words) for _ in range(rng.randint(1, 3)))
        made.append(rng.choice(["", "", "/", "!"]) + pattern + rng.choice(["", "", "/"]))
    return made


@pytest.mark.parametrize("seed", range(40))
def test_gitignore_files_are_applied_as_git_does(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    root = tmp_path / "repo"
    paths = ["a", "b", "ab", "a.x", "*", "c ", "d"]
    for _ in range(40):
        path = root.joinpath(*(rng.choice(paths) for _ in range(rng.randint(1, 4))))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:
            continue
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in {root, rng.choice(folders)}:
        (folder / ".gitignore").write_text("\n".join(random_patterns(rng)) + "\n")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1",
                   "GIT_DIR": str(tmp_path / "git"), "GIT_WORK_TREE": str(root)}  # fmt: skip
    subprocess.run(["git", "init", "-q"], check=True, env=environment, capture_output=True)
    git = subprocess.run(["git", "ls-files", "-z", "--others", "--exclude-standard"],
                         cwd=root, check=True, env=environment, capture_output=True)  # fmt: skip
    expected = {os.fsdecode(line) for line in git.stdout.split(b"\0") if line}
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        found = survey(fd, limits=LIMITS, gitignore=Tree(tmp_path, tops=("/repo",), uid=UID))
    finally:
        os.close(fd)
    dropped = [os.fsdecode(path) for path in found.excluded]
    kept = {
        str(path.relative_to(root)) for path in root.rglob("*")
        if not path.is_dir() and not any(path.is_relative_to(root / drop) for drop in dropped)
    }  # fmt: skip
    assert kept == expected, {str(f): (f / ".gitignore").read_text() for f in folders if (f / ".gitignore").exists()}
