"""A sandbox with an earlier backup, full or incremental, whose next backup is incremental and is going to be disturbed.

All that the bucket then holds of it is accounted for: each backup has what it needs, and nothing else is there.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from actors.config import BackupLimits
from actors.models import DirectoryBackup
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from storage import keys
from storage.collect import CollectionReport, collect
from storage.config import BucketConfig
from storage.errors import ObjectMissingError
from storage.metadata import BackupRecord
from tests.support.mount_leaks import nothing_leaks, wait_until
from tests.support.sandboxes import Node, backup, restore, sh
from tests.support.trees import Entry, fingerprint

Files = Literal["overlay", "plain"]
Below = Literal["full", "incremental"]
Content = dict[bytes, Entry]

TREE = "/workspace/tree"
_MAKE = """
set -e
mkdir -p old folder/deep; head -c {large_bytes} /dev/urandom > large; ln large folder/other
for name in file gone kind old/a folder/deep/b; do echo $name > $name; done
"""
_CHANGE = """
set -e
echo {number} > file; echo {number} > new{number}; rm -f gone; rm -rf old kind; mkdir kind; echo {number} > kind/x
chmod 750 folder/deep; ln -sf '../{number}' link; mkdir -p dir{number}; rm -rf dir{before}
"""


@contextmanager
def layering_node(folder: Path, bucket: BucketConfig, driver: Driver) -> Iterator[Node]:
    """A node in `folder` that makes incremental backups of small directories, too. It must leave nothing behind."""
    with nothing_leaks(folder), Node(folder / "node", bucket, driver) as node:
        node.adjust(backup=BackupLimits(incremental_min_bytes=0))
        yield node


def gc(node: Node, *, days: float = 2) -> CollectionReport:
    """Runs the collector as if it were run `days` from now, with its own grace period of one day."""
    return collect(node.catalog(), now=datetime.now(UTC) + timedelta(days=days), grace_s=86_400)


def needed(records: Iterable[BackupRecord]) -> set[str]:
    """The keys of all objects that these backups consist of."""
    found = set()
    for record in records:
        assert record.sandbox is not None
        found |= {
            keys.metadata(record.id),
            keys.index_entry(record.owner, record.sandbox, record.created_at, record.id),
        }
        if record.layers is None:
            found.add(keys.archive(record.id))
        if record.listing is not None:
            found.add(keys.listing(record.id))
        for layer in record.layers or ():
            found |= {
                keys.layer(record.owner, layer.sha256),
                keys.layer_reference(record.owner, layer.sha256, record.id),
            }
    return found


def _is_of_sandbox(key: str) -> bool:
    return key.endswith("/state.json") or keys.is_claim(key)


class Layered:
    """The directory `TREE` of a sandbox on a node, restored as an overlay or of plain files, and its backups."""

    def __init__(
        self, node: Node, box: LocalSandbox, files: Files, below: Below, *, large_bytes: int = 1_200_000
    ) -> None:
        self.node, self.box, self.files, self.below = node, box, files, below
        self.made: dict[str, Content] = {}
        """The content of each backup that was made and not deleted, by its id."""
        self._changes = 0
        self._others = node.keys()
        sh(box, f"mkdir -p {TREE}")
        sh(box, _MAKE.format(large_bytes=large_bytes), cwd=TREE)
        self._settle()
        self.back_up(full=True)
        if files == "overlay":
            restore(box, self.latest)
        self.change()
        if below == "incremental":
            assert self.back_up().depth == 2
            if files == "overlay":
                restore(box, self.latest)
            self.change()

    def _settle(self) -> None:
        """Waits until no file is so new that its fingerprint would count as doubtful."""
        newest = max(path.lstat().st_ctime for path in self._place.rglob("*"))
        assert wait_until(lambda: time.time() > newest + 0.1, timeout_s=20)

    @property
    def _place(self) -> Path:
        return self.node.tree(self.box) / TREE.lstrip("/")

    @property
    def latest(self) -> DirectoryBackup:
        """The latest backup that was made."""
        return DirectoryBackup(id=list(self.made)[-1], dir=TREE)

    def content(self) -> Content:
        """The content of the directory."""
        return fingerprint(self._place)

    def change(self) -> None:
        """Changes, adds, deletes and replaces some files."""
        self._changes += 1
        sh(self.box, _CHANGE.format(number=self._changes, before=self._changes - 1), cwd=TREE)

    def back_up(self, **options: object) -> BackupRecord:
        """Makes a backup, and keeps in mind what it has to hold."""
        made = backup(self.box, TREE, **options)
        self.made[made.id] = self.content()
        return self.node.catalog().get("default", made.id)

    def find_record(self, backup_id: str) -> BackupRecord | None:
        """The metadata of a backup; None if there is none."""
        try:
            return self.node.catalog().get("default", backup_id)
        except ObjectMissingError:
            return None

    def committed(self) -> set[str]:
        """The ids of all backups of the sandbox, whoever has made them."""
        metadata = {key for key in self.node.keys() - self._others if key.endswith("/meta.json")}
        return {backup_id for key in metadata if self.find_record(backup_id := key.split("/")[1]) is not None}

    def check_bucket(self) -> None:
        """Checks that the bucket holds what the backups consist of, and nothing else of them."""
        records = [record for backup_id in self.made if (record := self.find_record(backup_id)) is not None]
        assert len(records) == len(self.made)
        wanted, there = needed(records), {key for key in self.node.keys() - self._others if not _is_of_sandbox(key)}
        unheard = {keys.listing(backup_id) for backup_id in self.made}  # sent, but no answer: it goes with its backup
        assert wanted <= there <= wanted | unheard, f"left: {there - wanted}, missing: {wanted - there}"
        for prefix in (keys.BACKUPS_PREFIX, keys.LAYERS_ROOT):
            assert list(self.node.catalog().store.list_uploads(prefix)) == []

    def check_backups(self) -> None:
        """Checks that each backup restores to what it was, from what the bucket holds."""
        for number, (backup_id, content) in enumerate(self.made.items()):
            for archive in self.node.layout.cache.glob("*.sqsh"):
                archive.unlink()
            place = f"/tmp/again{number}"
            restore(self.box, DirectoryBackup(id=backup_id, dir=TREE), place, "copy" if number % 2 else "overlay")
            assert fingerprint(self.node.tree(self.box) / place.lstrip("/")) == content

    def check_node(self) -> None:
        """Checks that nothing is left on the node of a backup that was cut off."""
        home = self.node.home(self.box.id)
        assert list(home.glob("spool/*")) == []
        assert list(self.node.layout.cache.glob(".*.work")) == []

    def delete(self, but: Collection[str] = ()) -> None:
        """Deletes all backups `but` some; then nothing is left of them after a collection."""
        for backup_id in self.made.keys() - set(but):
            assert self.node.catalog().delete("default", backup_id)
            del self.made[backup_id]
        gc(self.node)
        self.check_bucket()
