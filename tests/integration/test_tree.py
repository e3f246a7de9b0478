"""A hostile tree: no link, however fast it changes, gives access to the node's own files."""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from actors.node.errors import PathError, PathMissingError, PathTypeError
from actors.node.exchange import exchange
from actors.node.tree import TEMPORARY, Tree
from tests.support.mount_leaks import open_files
from tests.support.sandboxes import UID

TOPS = ("/workspace", "/tmp", "/var/tmp")
ESCAPES = [
    "/workspace/absolute/secret",
    "/workspace/relative/secret",
    "/workspace/parent/workspace/absolute/secret",
    "/workspace/proc/secret",
    "/workspace/self/root{outside}/secret",
    "/workspace/chain/secret",
    "/workspace/file",
    "{outside}/secret",
    "/workspace/../..{outside}/secret",
]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("host secret")
    return folder


@pytest.fixture
def tree(tmp_path: Path, outside: Path) -> Tree:
    made = Tree(tmp_path / "root", tops=TOPS, uid=UID)
    made.prepare()
    workspace = made.root / "workspace"
    (workspace / "absolute").symlink_to(outside)
    (workspace / "relative").symlink_to("../../outside")
    (workspace / "parent").symlink_to("..")
    (workspace / "proc").symlink_to(f"/proc/self/root{outside}")
    (workspace / "self").symlink_to("/proc/self")
    (workspace / "chain").symlink_to("absolute")
    (workspace / "file").symlink_to(outside / "secret")
    (workspace / "real").mkdir()
    (workspace / "real" / "inside").write_text("inside")
    (workspace / "within").symlink_to("/workspace/real")
    return made


@pytest.mark.parametrize("path", ESCAPES)
def test_no_link_leads_to_a_file_of_the_node(tree: Tree, outside: Path, path: str) -> None:
    with pytest.raises(PathError), tree.regular_file(path.format(outside=outside)):
        pass


@pytest.mark.parametrize("path", ESCAPES)
def test_nothing_is_written_or_removed_outside(tree: Tree, outside: Path, path: str) -> None:
    place = path.format(outside=outside)
    with suppress(PathError):
        file = tree.new_file(place, None)
        file.write(b"evil")
        file.commit()
    with suppress(PathError):
        tree.remove(place)
    assert (outside / "secret").read_text() == "host secret"
    assert os.listdir(outside) == ["secret"]


def test_links_that_stay_inside_are_followed_as_the_sandbox_sees_them(tree: Tree) -> None:
    with tree.regular_file("/workspace/within/inside") as fd:
        assert os.read(fd, 100) == b"inside"
        assert tree.canonical(fd) == "/workspace/real/inside"


@pytest.mark.parametrize("path", ["/", "/var", "/workspace/parent", "/workspace/parent/var"])
def test_nothing_above_the_top_folders_is_shown(tree: Tree, path: str) -> None:
    with pytest.raises(PathError):
        tree.entries(path, limit=10)


def test_a_swapped_link_never_shows_a_file_of_the_node(tree: Tree, outside: Path) -> None:
    work = tree.root / "workspace" / "swap"
    work.mkdir()
    (work / "dir").mkdir()
    (work / "dir" / "secret").write_text("sandbox's own")
    (work / "link").symlink_to(outside)
    (work / "through").symlink_to("dir/written")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            exchange(work / "dir", work / "link")

    thread = threading.Thread(target=swap)
    thread.start()
    seen = 0
    try:
        for number in range(300):
            try:
                with tree.regular_file("/workspace/swap/dir/secret") as fd:
                    assert os.read(fd, 100) == b"sandbox's own"
                    seen += 1
            except PathError:
                pass
            with suppress(PathError):
                file = tree.new_file("/workspace/swap/through", None)
                file.write(b"new")
                file.commit()
            try:
                file = tree.new_file(f"/workspace/swap/dir/new{number}", None)
                file.write(b"new")
                file.commit()
                tree.remove(f"/workspace/swap/dir/new{number}")
                tree.entries("/workspace/swap/dir", limit=1000)
            except PathError:
                pass
    finally:
        stop.set()
        thread.join()
    assert seen > 0
    assert os.listdir(outside) == ["secret"]


def test_a_new_file_appears_complete_or_not_at_all(tree: Tree) -> None:
    target = tree.root / "workspace" / "target"
    target.write_text("old")
    target.chmod(0o640)
    file = tree.new_file("/workspace/target", None)
    file.write(b"new content")
    assert target.read_text() == "old"
    temporary = [name for name in os.listdir(target.parent) if TEMPORARY.fullmatch(name)]
    assert len(temporary) == 1
    file.commit()
    assert target.read_text() == "new content"
    assert (target.stat().st_mode & 0o7777, target.stat().st_uid) == (0o640, UID)
    file.abort()
    other = tree.new_file("/workspace/target", 0o4755)
    other.write(b"x")
    other.abort()
    other.abort()
    assert target.read_text() == "new content"
    assert [name for name in os.listdir(target.parent) if TEMPORARY.fullmatch(name)] == []


def test_a_new_file_replaces_a_link_that_leads_outside_and_not_its_target(tree: Tree, outside: Path) -> None:
    file = tree.new_file("/workspace/file", None)
    file.write(b"mine")
    file.commit()
    assert (outside / "secret").read_text() == "host secret"
    assert not (tree.root / "workspace" / "file").is_symlink()


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a", "real/inside"),
        ("a", "/workspace/real/inside"),
        ("a", "within/inside"),
        ("a", "within/../real/./inside"),
        ("a", "real/new"),
        ("a", "/tmp/elsewhere"),
        ("a", "../tmp/elsewhere"),
        ("a", "../../../../../../tmp/elsewhere"),
        ("real/a", "../b"),
    ],
)
def test_a_new_file_is_written_to_the_target_of_an_inner_link_which_stays(tree: Tree, link: str, target: str) -> None:
    work = tree.root / "workspace"
    (work / "first").symlink_to(link)
    (work / link).symlink_to(target)
    file = tree.new_file("/workspace/first", None)
    file.write(b"written")
    file.commit()
    assert (os.readlink(work / "first"), os.readlink(work / link)) == (link, target)
    with tree.regular_file("/workspace/first") as fd:
        assert os.read(fd, 100) == b"written"
    assert [path for path in tree.root.rglob("*") if TEMPORARY.fullmatch(path.name)] == []


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "../../outside/secret",
        "/",
        "..",
        "/nowhere",
        "/var/x",
        "no/such/folder",
        "new/.",
        "no/such/",
        "absolute/secret",
        "chain/secret",
    ],
)
def test_a_link_that_leads_outside_or_nowhere_is_replaced(tree: Tree, outside: Path, target: str) -> None:
    work = tree.root / "workspace"
    (work / "out").symlink_to(target)
    (work / "first").symlink_to("out")
    for name in ("first", "out"):
        file = tree.new_file(f"/workspace/{name}", None)
        file.write(b"mine")
        file.commit()
        assert (work / name).read_bytes() == b"mine" and not (work / name).is_symlink()
    assert (outside / "secret").read_text() == "host secret"


@pytest.mark.parametrize(
    "target", ["self", "/workspace", "/tmp/", "real/inside/x", "new/", "real/", "real/.", "real/..", "real/inside/"]
)
def test_a_link_whose_target_cannot_be_a_file_is_refused_and_stays(tree: Tree, target: str) -> None:
    (tree.root / "workspace/self").unlink()
    (tree.root / "workspace/self").symlink_to(target)
    with pytest.raises(PathError):
        tree.new_file("/workspace/self", None)
    assert os.readlink(tree.root / "workspace/self") == target


def test_a_link_to_a_directory_is_refused_and_stays(tree: Tree) -> None:
    with pytest.raises(PathTypeError):
        tree.new_file("/workspace/within", None).commit()
    assert os.readlink(tree.root / "workspace/within") == "/workspace/real"


def test_a_new_file_over_a_directory_fails_and_leaves_nothing(tree: Tree) -> None:
    file = tree.new_file("/workspace/real", None)
    with pytest.raises(PathTypeError):
        file.commit()
    assert [name for name in os.listdir(tree.root / "workspace") if TEMPORARY.fullmatch(name)] == []


def test_a_failed_new_file_leaves_no_descriptor(tree: Tree) -> None:
    before = open_files()
    for path in ("/workspace/real/inside/x", "/workspace/file/x", "/x", "/workspace"):
        with pytest.raises(PathError):
            tree.new_file(path, None)
    assert open_files() == before


def test_a_half_made_top_folder_is_given_to_the_sandboxs_user(tree: Tree) -> None:
    for top in ("workspace", "tmp"):
        os.chown(tree.root / top, 0, 0)
        (tree.root / top).chmod(0o755)
    tree.prepare()
    found = [(tree.root / top).stat() for top in ("workspace", "tmp")]
    assert [(row.st_uid, stat.S_IMODE(row.st_mode)) for row in found] == [(UID, 0o755), (UID, 0o1777)]


def test_created_directories_can_be_removed_again(tree: Tree) -> None:
    made = tree.make_directory("/workspace/a/b/c")
    assert made == ["/workspace/a", "/workspace/a/b", "/workspace/a/b/c"]
    assert tree.make_directory("/workspace/a/b/c") == []
    (tree.root / "workspace" / "a" / "kept").touch()
    tree.remove_directories(made)
    assert os.listdir(tree.root / "workspace" / "a") == ["kept"]
    with pytest.raises(PathTypeError):
        tree.make_directory("/workspace/real/inside/x")
    with pytest.raises(PathError):
        tree.make_directory("/etc/x")


def test_only_files_links_and_empty_directories_are_removed(tree: Tree) -> None:
    tree.remove("/workspace/absolute")
    with pytest.raises(PathTypeError):
        tree.remove("/workspace/real")
    tree.remove("/workspace/real/inside")
    tree.remove("/workspace/real")
    with pytest.raises(PathMissingError):
        tree.remove("/workspace/real")
    for top in TOPS:
        with pytest.raises(PathError):
            tree.remove(top)


def test_special_files_are_refused_without_waiting(tree: Tree) -> None:
    os.mkfifo(tree.root / "workspace" / "fifo")
    with pytest.raises(PathTypeError), tree.regular_file("/workspace/fifo"):
        pass
    loop = tree.root / "workspace" / "loop"
    loop.symlink_to("loop")
    with pytest.raises(PathError), tree.regular_file("/workspace/loop"):
        pass
    with pytest.raises(PathError), tree.regular_file("/workspace/" + "x" * 300):
        pass
