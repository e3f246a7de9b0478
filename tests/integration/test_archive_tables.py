"""The tables of archives that mksquashfs has made, read in place and compared with the tree; and of damaged ones."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from pathlib import Path

import pytest

from storage import squashfs_tables as module
from storage.archive_contents import ArchiveContents, StoredArchive
from storage.errors import NotListedError
from storage.listing import Entry, keys_below, sort_key
from storage.paging import entry_page, find_entry
from tests.support.entries import KnownContents, in_order
from tests.support.memory_store import MemoryObjectStore

KEY = "archive"
COMPRESSIONS = ("gzip", "lz4", "zstd")


def make_tree(folder: Path) -> None:
    (folder / "many").mkdir(parents=True)
    for number in range(3000):
        (folder / "many" / f"{number % 7}-a-rather-long-name-for-a-file-{number}").write_bytes(b"x" * (number % 50))
    for name in ("a/b/c", "a!", "\udcff\n", "é"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text(name, errors="surrogateescape")
    (folder / "a" / "link").symlink_to("../\udc80/x")
    os.link(folder / "a!" / "file", folder / "a" / "again")
    os.mkfifo(folder / "pipe")
    with (folder / "sparse").open("wb") as file:
        file.truncate(64 * 2**20)
    (folder / "deep" / "/".join(["d" * 100] * 30)).mkdir(parents=True)
    (folder / "a!").chmod(0o2711)


def squash(folder: Path, archive: Path, *options: str) -> bytes:
    subprocess.run(
        ["mksquashfs", ".", str(archive), "-noappend", "-quiet", "-no-progress", *options],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return archive.read_bytes()


def tree_of(folder: Path) -> list[Entry]:
    found = []
    for directory, folders, files in os.walk(os.fsencode(folder)):
        for name in [b"", *folders, *files] if directory == os.fsencode(folder) else [*folders, *files]:
            place = os.path.join(directory, name) if name else directory
            at = os.lstat(place)
            target = os.readlink(place) if stat.S_ISLNK(at.st_mode) else b""
            size = at.st_size if stat.S_ISREG(at.st_mode) else 0
            path = os.path.relpath(place, os.fsencode(folder)) if name else b""
            found.append(Entry(path, at.st_mode, size, int(at.st_mtime), 0, target))
    return in_order(found)


def opened(*stack: bytes) -> ArchiveContents:
    """The contents of these archives, the oldest first."""
    store = MemoryObjectStore()
    for number, data in enumerate(stack):
        store.put(f"{KEY}{number}", data)
    return ArchiveContents(store, [StoredArchive(f"{KEY}{number}", len(data)) for number, data in enumerate(stack)])


def make_layer(folder: Path, choose: random.Random, *, levels: int = 4) -> None:
    """Makes a directory with a few of a few names: files, links, directories and whiteouts."""
    folder.mkdir()
    for name in choose.sample(("a", "a!", "b", ".wh.a", "\udcff"), choose.randrange(5)):
        place = folder / name
        kind = choose.choice("fldddw") if levels else "f"
        if kind == "f":
            place.write_bytes(b"x" * choose.randrange(9))
        elif kind == "l":
            place.symlink_to(str(choose.random()))
        elif kind == "d":
            make_layer(place, choose, levels=levels - 1)
            place.chmod(choose.choice((0o700, 0o755)))
        else:
            os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(0, 0))


def laid_over(tree: list[Entry], layer: list[Entry]) -> list[Entry]:
    """The tree after a layer, entry by entry, as one who unpacks it would do it."""
    found = {each.path: each for each in tree}
    for each in layer:
        if not (each.is_directory and each.path in found and found[each.path].is_directory):
            for path in [path for path in found if path == each.path or path.startswith(each.path + b"/")]:
                del found[path]
        if not stat.S_ISCHR(each.mode):
            found[each.path] = each
    return in_order(found.values())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables") / "tree"
    make_tree(folder)
    return folder


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_archive_is_listed_as_its_tree_is(tree: Path, tmp_path: Path, compression: str) -> None:
    data = squash(tree, tmp_path / "archive", "-comp", compression)
    expected = tree_of(tree)
    assert list(opened(data).scan(b"", None, deep=True)) == expected


def test_an_archive_without_compressed_tables_is_listed(tree: Path, tmp_path: Path) -> None:
    data = squash(tree, tmp_path / "archive", "-noI")
    assert list(opened(data).scan(b"", None, deep=True)) == tree_of(tree)


def test_a_scan_of_an_archive_begins_and_ends_anywhere(tree: Path, tmp_path: Path) -> None:
    contents, known = opened(squash(tree, tmp_path / "archive", "-comp", "lz4")), KnownContents(tree_of(tree))
    for each in [entry for entry in known.entries if b"many/" not in entry.path]:
        start, end = keys_below(each.path)
        for deep in (False, True):
            assert list(contents.scan(start, end, deep=deep)) == list(known.scan(start, end, deep=deep))
        assert find_entry(contents, each.path) == each
    assert find_entry(contents, b"a/none") is None
    found: list[Entry] = []
    cursor = None
    while True:
        page = entry_page(contents, b"many", recursive=False, limit=700, cursor=cursor)
        found += page.entries
        cursor = page.cursor
        if cursor is None:
            break
    assert found == [entry for entry in known.entries if entry.path.startswith(b"many/")]


@pytest.mark.parametrize("seed", range(12))
def test_archives_that_are_laid_over_each_other_are_listed_as_one_tree(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    expected: list[Entry] = []
    stack: list[bytes] = []
    for number in range(choose.randrange(2, 9)):
        folder = tmp_path / f"layer{number}"
        make_layer(folder, choose)
        stack.append(squash(folder, tmp_path / f"archive{number}", "-comp", choose.choice(COMPRESSIONS)))
        expected = laid_over(expected, tree_of(folder))
        contents, known = opened(*stack), KnownContents(expected)
        assert list(contents.scan(b"", None, deep=True)) == expected
        for each in expected:
            start, end = keys_below(each.path)
            for deep in (False, True):
                assert list(contents.scan(start, end, deep=deep)) == list(known.scan(start, end, deep=deep))
            assert list(contents.scan(sort_key(each.path), None, deep=True)) == list(
                known.scan(sort_key(each.path), None, deep=True)
            )
        hidden = {each.path for each in tree_of(folder)} - {each.path for each in expected}
        assert all(find_entry(contents, path) is None for path in hidden)


def test_archives_are_listed_as_deep_as_any_backup_is(tmp_path: Path) -> None:
    for layer in ("older", "newer"):
        folder = tmp_path / layer
        folder.mkdir()
        subprocess.run(["mkdir", "-p", "/".join("d" * 767)], cwd=folder, check=True)
    stack = [squash(tmp_path / layer, tmp_path / f"{layer}.sqsh") for layer in ("older", "newer")]
    listed = list(opened(*stack).scan(b"", None, deep=True))
    assert [entry.path.count(b"d") for entry in listed] == list(range(768))
    subprocess.run(["mkdir", "-p", "/".join("d" * 768)], cwd=tmp_path / "newer", check=True)
    deeper = squash(tmp_path / "newer", tmp_path / "deeper.sqsh")
    with pytest.raises(NotListedError):
        list(opened(stack[0], deeper).scan(b"", None, deep=True))


def test_the_archives_of_a_stack_share_one_limit_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in ("older", "newer"):
        (tmp_path / layer).mkdir()
        for number in range(6):
            os.mknod(tmp_path / layer / f"{number}", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    stack = [squash(tmp_path / layer, tmp_path / f"{layer}.sqsh") for layer in ("older", "newer")]
    assert [entry.path for entry in opened(*stack).scan(b"", None, deep=True)] == [b""]
    monkeypatch.setattr(module, "_MAX_NAMES", 10)
    with pytest.raises(NotListedError):
        list(opened(*stack).scan(b"", None, deep=True))


def test_an_empty_directory_is_listed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    data = squash(tmp_path / "empty", tmp_path / "archive")
    assert [entry.path for entry in opened(data).scan(b"", None, deep=True)] == [b""]


@pytest.mark.parametrize("data", [b"", b"hsqs", bytes(96), bytes(5000), b"hsqs" + b"\xff" * 5000])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(NotListedError):
        list(opened(data).scan(b"", None, deep=True))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("options", [(), ("-noI",)])
def test_a_damaged_archive_gives_an_error_or_names_that_can_be(
    tmp_path: Path, compression: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_BLOCKS", 2000)
    monkeypatch.setattr(module, "_MAX_NAMES", 20_000)
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(60):
        (folder / f"d{number % 5}").mkdir(exist_ok=True)
        (folder / f"d{number % 5}" / f"{number}").symlink_to("x" * number or "y")
    whole = squash(folder, tmp_path / "archive", "-comp", compression, *options)
    choose = random.Random(8)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(choose.choice((1, 1, 2, 8))):
            data[choose.randrange(len(data) if choose.random() < 0.7 else 96)] = choose.randrange(256)
        try:
            entries = list(opened(bytes(data)).scan(b"", None, deep=True))
        except NotListedError:
            refused += 1
            continue
        assert [entry.path for entry in entries] == [entry.path for entry in in_order(entries)]
        assert all(name not in (b"", b".", b"..") for entry in entries[1:] for name in entry.path.split(b"/"))
    assert refused > 10


def test_an_archive_that_contains_itself_ends_with_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    (folder / "a" / "b").mkdir(parents=True)
    data = bytearray(squash(folder, tmp_path / "archive", "-noI"))
    inodes = int.from_bytes(data[64:72], "little")
    root = int.from_bytes(data[32:40], "little")
    directories = int.from_bytes(data[72:80], "little")
    name = data.index(b"b", directories)
    entry = name - 8  # the name "b" then stands for the root's inode
    data[entry : entry + 2] = (root & 0xFFFF).to_bytes(2, "little")
    assert inodes < directories < entry
    with pytest.raises(NotListedError):
        list(opened(bytes(data)).scan(b"", None, deep=True))


def counted(store: MemoryObjectStore) -> list[int]:
    """The sizes of the ranges that are read from the store from now on."""
    asked: list[int] = []
    get = store.get_range

    def counting(key: str, *, start: int, size_bytes: int) -> object:
        asked.append(size_bytes)
        return get(key, start=start, size_bytes=size_bytes)

    store.get_range = counting  # type: ignore[method-assign, assignment]
    return asked


def test_few_requests_list_a_directory_of_a_large_archive_and_seven_layers(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "data").write_bytes(random.Random(1).randbytes(8 * 2**20))
    subprocess.run(["cp", "-a", str(tree / "a"), str(tmp_path / "large" / "a")], check=True)
    data = squash(tmp_path / "large", tmp_path / "archive")
    store = MemoryObjectStore()
    store.put(KEY, data)
    asked = counted(store)
    contents = ArchiveContents(store, [StoredArchive(KEY, len(data))])
    assert [entry.path for entry in contents.scan(*keys_below(b"a"), deep=False)] == [b"a/again", b"a/b", b"a/link"]
    assert len(asked) <= 3 and sum(asked) < 2**20
    stack = [StoredArchive(KEY, len(data))]
    for number in range(7):
        (tmp_path / "layer" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "layer" / "a" / f"{number}").touch()
        layer = squash(tmp_path / "layer", tmp_path / f"layer{number}")
        store.put(f"{number}", layer)
        stack.append(StoredArchive(f"{number}", len(layer)))
    asked.clear()
    listed = entry_page(ArchiveContents(store, stack), b"a", recursive=False, limit=1000).entries
    assert [entry.path for entry in listed] == [*(b"a/%d" % n for n in range(7)), b"a/again", b"a/b", b"a/link"]
    assert len(asked) <= 3 + 7 and sum(asked) < 2**20
