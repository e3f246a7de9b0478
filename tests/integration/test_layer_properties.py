"""A layer of changes, laid over the archives below it, shows what a full archive of the directory shows.

The full archive is the reference. After each random history both are restored, the stack of layers on mounts and as a
copy, and compared in every attribute that an archive keeps. Both are listed from the bucket, too.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.node import binds, mounting
from actors.node.archive_cache import CachedArchive, sha256_of
from actors.node.archiver import Archiver
from actors.node.bubblewrap import Bind, Box
from actors.node.changes import OverlaidArchives, Since
from actors.node.drivers import Driver, Limit
from actors.node.fingerprints import Fingerprints
from actors.node.layers import Layer, Layers
from actors.node.packing import ArchiveRequest, PackedArchive
from actors.node.plain_changes import RecordedFiles, Recording
from actors.node.survey import Limits
from actors.node.tree import Tree
from storage.archive_contents import ArchiveContents, StoredArchive
from storage.listing import Entry
from tests.support.memory_store import MemoryObjectStore
from tests.support.mount_leaks import nothing_leaks
from tests.support.sandboxes import UID
from tests.support.tree_operations import NAMES, Change, Kind, apply, changes, populate
from tests.support.trees import fingerprint

MIB = 2**20
LIMITS = Limits(inodes=20_000, source_bytes=2**30, hole_bytes=2**30, depth=300)
EXAMPLES = int(os.environ.get("HOLDFAST_TEST_LAYER_HISTORIES", "8"))
KINDS: tuple[Kind, ...] = (
    "write", "append", "truncate", "replace", "rename", "rename", "unlink", "rmtree", "rmdir", "mkdir", "mkdir",
    "symlink", "chmod", "touch", "setxattr", "removexattr", "exchange", "exchange", "rewrite",
)  # fmt: skip
LIKE_WHITEOUTS = (".wh.a", ".wh..wh..opq")
UNLESS_LIMITED: dict[Limit, Kind] = {Limit.LINKS: "link", Limit.FIFOS: "fifo"}
Excludes = tuple[str, ...]
EXCLUDES: tuple[Excludes, ...] = ((), ("a",), ("/a/*",), ("*", "!/c", "!/b"), ("x*", "b/"))


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that leaves out what the patterns say, and is restored then if `then_restored`."""

    excludes: Excludes
    then_restored: bool = False


Step = Change | Backup | Literal["reopen"]
_numbers = itertools.count()


class Directory:
    """A restored directory in a sandbox's tree, with the archives that it was restored from."""

    def __init__(self, folder: Path, driver: Driver) -> None:
        self.folder = folder
        self.layers = Layers(folder / "layers", folder / "lowers", driver=driver, on_lost=lambda layer: None)
        self.tree = Tree(folder / "root", tops=("/workspace",), uid=UID)
        self.tree.prepare()
        work = self.tree.root / "workspace"
        box = Box(uid=UID, hostname="box", binds=(Bind(work, "/workspace", writable=True),))
        self.archiver = Archiver(box, self.tree, limits=LIMITS, memory_bytes=64 * MIB)
        self.place = work / "tree"
        self.place.mkdir()
        self.layer: Layer | None = None
        self.archives: list[CachedArchive] = []

    def spool(self) -> Path:
        made = self.folder / f"spool{next(_numbers)}"
        made.mkdir(mode=0o711)
        return made

    def _created(self, **options: Any) -> PackedArchive:
        given = {"compression": "zstd", "level": 1, "timeout_s": 100, "cancelled": threading.Event(), **options}
        return self.archiver.create(ArchiveRequest(directory="/workspace/tree", spool=self.spool(), **given))

    def full(self, **options: Any) -> CachedArchive:
        made = self._created(**options)
        return CachedArchive(made.path, sha256_of(made.path))

    def incremental(self, **options: Any) -> CachedArchive:
        assert self.layer is not None
        since = Since(OverlaidArchives(self.layer), 100 * MIB)
        made = self._created(since=since, **options)
        return CachedArchive(made.path, sha256_of(made.path))

    def recorded(self) -> CachedArchive:
        """A full archive of plain files, with their fingerprints."""
        recording = Recording(self.folder / "recording", UID)
        made = self.full(recording=recording)
        self._keep(recording, made)
        return made

    def since_recorded(self, **options: Any) -> CachedArchive:
        """A layer with what was changed since the fingerprints, and new fingerprints."""
        before, recording = (
            Fingerprints.find(self.folder / "fingerprints" / "kept"),
            Recording(self.folder / "recording", UID),
        )
        assert before is not None
        since = Since(RecordedFiles(before, recording), 100 * MIB)
        made = self._created(since=since, **options)
        archive = CachedArchive(made.path, sha256_of(made.path))
        self._keep(recording, archive)
        return archive

    def _keep(self, recording: Recording, archive: CachedArchive) -> None:
        recording.commit("backup", self.folder / "fingerprints" / "kept")
        self.archives = [*self.archives, archive]

    def restore(self, archives: Sequence[CachedArchive]) -> None:
        self.leave()
        self.archives = list(archives)
        base, *above = archives
        self.layer = self.layers.create(base.path, base.sha256, above)
        self._show()

    def reopen(self) -> None:
        assert self.layer is not None
        self._hide()
        self.layers.close(self.layer)
        base, *above = self.archives
        self.layer = self.layers.open(self.layer.id, base.path, base.sha256, above)
        self._show()

    def leave(self) -> None:
        if self.layer is not None:
            self._hide()
            self.layers.discard(self.layer)
            self.layer = None

    @contextmanager
    def mounted(self, archives: Sequence[CachedArchive]) -> Iterator[Path]:
        base, *above = archives
        layer = self.layers.create(base.path, base.sha256, above)
        try:
            yield layer.merged
        finally:
            self.layers.discard(layer)

    @contextmanager
    def copied(self, archives: Sequence[CachedArchive]) -> Iterator[Path]:
        parent, work = self.spool(), self.spool()
        paths = [archive.path for archive in archives]
        self.archiver.extract_stack(paths, parent, "tree", work, cancelled=threading.Event())
        yield parent / "tree"
        shutil.rmtree(parent)

    def _show(self) -> None:
        assert self.layer is not None
        fd = os.open(self.place, os.O_PATH | os.O_DIRECTORY)
        try:
            binds.bind(self.layer.merged, fd)
        finally:
            os.close(fd)

    def _hide(self) -> None:
        binds.unbind(self.place, deadline_s=10)


@pytest.fixture
def directory(scratch: Path, driver: Driver) -> Iterator[Directory]:
    with made(scratch, driver) as directory:
        yield directory


@contextmanager
def made(scratch: Path, driver: Driver) -> Iterator[Directory]:
    folder = scratch / f"directory{next(_numbers)}"
    folder.mkdir()
    with nothing_leaks(folder):
        directory = Directory(folder, driver)
        try:
            yield directory
            directory.leave()
        finally:
            mounting.sweep(folder)
    shutil.rmtree(folder)


def check_layer(directory: Directory, excludes: Excludes = ()) -> list[CachedArchive]:
    """Makes a layer, and checks it beside a full archive. Returns the stack with it."""
    stack = [*directory.archives, directory.incremental(excludes=excludes)]
    check_stack(directory, stack, excludes)
    return stack


def check_stack(directory: Directory, stack: Sequence[CachedArchive], excludes: Excludes) -> None:
    walked: list[Entry] = []
    full = directory.full(excludes=excludes, listed=lambda *found: walked.append(in_seconds(*found)))
    listed = in_bucket(stack)
    assert listed == in_bucket([full])
    unknown = {entry.path for entry in walked if not entry.target}
    assert [entry._replace(target=b"") if entry.path in unknown else entry for entry in listed] == walked
    with directory.copied([full]) as copy:
        expected = fingerprint(copy)
    with directory.copied(stack) as copy:
        assert fingerprint(copy) == expected
    with directory.mounted(stack) as shown:
        assert fingerprint(shown) == expected


def in_seconds(path: bytes, found: os.stat_result, target: bytes) -> Entry:
    size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    return Entry(path, found.st_mode, size, found.st_mtime_ns // 1_000_000_000, 0, target)


def in_bucket(stack: Sequence[CachedArchive]) -> list[Entry]:
    """Lists a backup that consists of these archives, as the service does."""
    store, stored = MemoryObjectStore(), []
    for archive in stack:
        data = archive.path.read_bytes()
        store.put(archive.sha256, data)
        stored.append(StoredArchive(archive.sha256, len(data)))
    return list(ArchiveContents(store, stored).scan(b"", None, deep=True))


def make(change: Change, place: Path) -> None:
    """Makes a change as a command of the sandbox would."""
    apply(change, place)
    belongs_to_sandbox(place)


def belongs_to_sandbox(place: Path) -> None:
    """Gives to the sandbox's user what the test has made: the tools of an archive see the files of no other."""
    for path in (place, *place.rglob("*")):
        if path.lstat().st_uid != UID:
            os.chown(path, UID, UID, follow_symlinks=False)


def run(directory: Directory, steps: Sequence[Step]) -> None:
    for step in steps:
        if step == "reopen":
            directory.reopen()
        elif isinstance(step, Backup):
            stack = check_layer(directory, step.excludes)
            if step.then_restored:
                directory.restore(stack)
        else:
            make(step, directory.place)
    check_layer(directory)


def backups() -> st.SearchStrategy[Step]:
    excludes = st.one_of(st.just(()), st.sampled_from(EXCLUDES))
    return st.builds(Backup, excludes, st.booleans())


def test_what_is_changed_after_the_changes_were_copied_is_not_in_the_layer(scratch: Path, best_driver: Driver) -> None:
    with made(scratch, best_driver) as directory:
        populate(directory.place)
        belongs_to_sandbox(directory.place)
        directory.restore([directory.full()])
        file = directory.place / "file"
        file.write_text("before")
        with directory.copied([directory.full()]) as copy:
            expected = fingerprint(copy)
        layer = directory.incremental(on_staged=lambda: file.write_text("after, and longer"))
        assert file.read_text() == "after, and longer"
        with directory.copied([*directory.archives, layer]) as copy:
            assert fingerprint(copy) == expected


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("driver", [driver for driver in Driver if driver.stacks_archives], indirect=True)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_layer_shows_what_a_full_archive_shows(scratch: Path, driver: Driver, data: st.DataObject) -> None:
    kinds = (*KINDS, *(kind for limit, kind in UNLESS_LIMITED.items() if limit not in driver.limits))
    one: st.SearchStrategy[Step] = changes(*kinds, names=(*NAMES, *LIKE_WHITEOUTS))
    between: st.SearchStrategy[Step] = st.one_of(backups(), st.just("reopen"))
    steps = data.draw(st.lists(st.one_of(one, one, one, one, one, between), min_size=3, max_size=30))
    with made(scratch, driver) as directory:
        populate(directory.place)
        belongs_to_sandbox(directory.place)
        directory.restore([directory.full()])
        run(directory, steps)


@pytest.mark.timeout(3600)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_layer_over_plain_files_shows_what_a_full_archive_shows(scratch: Path, data: st.DataObject) -> None:
    one: st.SearchStrategy[Step] = changes(*KINDS, "link", "fifo", names=(*NAMES, *LIKE_WHITEOUTS))
    steps = data.draw(st.lists(st.one_of(one, one, one, one, backups()), min_size=3, max_size=30))
    with made(scratch, Driver.KERNEL) as directory:
        populate(directory.place)
        belongs_to_sandbox(directory.place)
        directory.recorded()
        for step in [*steps, Backup(())]:
            if isinstance(step, Change):
                make(step, directory.place)
            elif isinstance(step, Backup):
                directory.since_recorded(excludes=step.excludes)
                check_stack(directory, directory.archives, step.excludes)
            if len(directory.archives) == 8:
                directory.archives = []
                directory.recorded()
