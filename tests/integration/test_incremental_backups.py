"""A backup of a restored directory uploads what was changed, and restores to what a full backup restores to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.config import BackupLimits
from actors.errors import BackupNotFoundError
from actors.metrics import ARCHIVED_BYTES, Tally
from actors.models import RestoreMode, RestoreOptions
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from actors.sandbox.increments import MAX_DEPTH
from storage import keys
from storage.config import BucketConfig
from storage.contents import open_contents
from storage.listing import Entry as Listed
from storage.metadata import BackupRecord
from storage.s3 import S3ObjectStore
from tests.support.layered import layering_node
from tests.support.mount_leaks import wait_until
from tests.support.s3 import FAST
from tests.support.sandboxes import Node, backup, command, restore, sh, write
from tests.support.trees import Entry, fingerprint

TREE = "/workspace/tree"
HISTORY = """
set -e
echo changed > file; rm gone; rm -r old; mv moved elsewhere; rm kind && mkdir kind && echo x > kind/x
rm -r folder/kind && echo now a file > folder/kind; ln new-link other-link 2>/dev/null || ln file other-link
chmod 750 folder/deep; touch -d @1234567890 folder/deep; ln -s '../../far away' link; mkfifo fifo; : > .wh.gone
"""


WRITER = """
import mmap, os, random

held = [mmap.mmap(open(f"{n}", "r+b").fileno(), 0) for n in range(5)]
print("begun", flush=True)
while True:
    n, at, data = random.randrange(20), random.randrange(4000), random.randbytes(8)
    if n < len(held):
        held[n][at : at + 8] = data
        continue
    way = random.choice(["write", "map", "exchange", "attribute"])
    if way == "write":
        with open(f"{n}", "r+b") as file:
            os.pwrite(file.fileno(), data, at)
    elif way == "map":
        with open(f"{n}", "r+b") as file, mmap.mmap(file.fileno(), 0) as page:
            page[at : at + 8] = data
    elif way == "exchange":
        other = random.randrange(len(held), 20)
        os.rename(f"{n}", "between")
        if other != n:
            os.rename(f"{other}", f"{n}")
        os.rename("between", f"{other}")
    else:
        os.setxattr(f"{n}", "user.x", data)
    os.utime(f"{n}", (1000, 1000))
"""
"""Changes files in ways that leave their sizes and times alone, and some through mappings that it keeps."""


def make_tree(box: LocalSandbox) -> None:
    sh(box, f"mkdir -p {TREE}/folder/deep {TREE}/folder/kind {TREE}/old {TREE}/moved")
    sh(box, "head -c 300000 /dev/urandom > folder/deep/data", cwd=TREE)
    sh(box, "for name in file gone kind old/a moved/a folder/kind/a; do echo $name > $name; done", cwd=TREE)


def settled(node: Node, box: LocalSandbox) -> None:
    """Waits until no file is so new that it counts as doubtful."""
    newest = max(path.lstat().st_ctime for path in (node.tree(box) / "workspace").rglob("*"))
    assert wait_until(lambda: time.time() > newest + 0.1, timeout_s=20)


@pytest.fixture
def node(tmp_path: Path, bucket: BucketConfig, best_driver: Driver) -> Iterator[Node]:
    with layering_node(tmp_path, bucket, best_driver) as node:
        yield node


@pytest.fixture
def box(node: Node) -> LocalSandbox:
    """A sandbox with a directory that was just restored from a full backup."""
    box = node.sandbox(f"box-{uuid.uuid4().hex[:8]}")
    make_tree(box)
    restore(box, backup(box, TREE), TREE)
    return box


def record(node: Node, backup_id: str) -> BackupRecord:
    return node.catalog().get("default", backup_id)


def listed(node: Node, made: BackupRecord) -> list[Listed]:
    """The listing of a backup."""
    assert made.listing is not None
    return list(open_contents(node.catalog().store, made).contents.scan(b"", None, deep=True))


def content(node: Node, box: LocalSandbox, directory: str = TREE) -> dict[bytes, Entry]:
    return fingerprint(node.tree(box) / directory.lstrip("/"))


def test_a_changed_directory_is_backed_up_as_a_layer_and_restored_in_each_mode(node: Node, box: LocalSandbox) -> None:
    sh(box, HISTORY, cwd=TREE)
    expected = content(node, box)
    made = backup(box, TREE)
    found = record(node, made.id)
    assert found.is_incremental and found.depth == 2 and found.size_bytes < 20_000
    assert keys.archive(made.id) not in set(node.keys())
    for mode in ("overlay", "copy"):
        restore(box, made, f"/workspace/{mode}", mode=mode)
        assert content(node, box, f"/workspace/{mode}") == expected
    box.close()
    box.wake()
    assert content(node, box, "/workspace/overlay") == expected


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_everything_that_is_restored_belongs_to_the_sandbox(node: Node, box: LocalSandbox, mode: str) -> None:
    sh(box, "echo changed > file; mkdir new; echo x > new/x; touch folder; ln -s file link; mkfifo fifo", cwd=TREE)
    made = backup(box, TREE)
    assert record(node, made.id).is_incremental
    restore(box, made, "/workspace/again", mode)
    assert sh(box, "find again ! -user $(id -u) -o ! -group $(id -g)") == ""
    sh(box, "echo again > file; echo added > added", cwd="/workspace/again")
    box.sleep()
    box.wake()
    assert sh(box, "find again ! -user $(id -u) -o ! -group $(id -g)") == ""


def test_a_backup_after_a_deletion_looks_only_where_something_was_changed(node: Node) -> None:
    tally = Tally()
    box = node.sandbox(f"box-{uuid.uuid4().hex[:8]}", meter=tally)
    make_tree(box)
    restore(box, backup(box, TREE), TREE)
    sh(box, "rm gone && echo changed > file", cwd=TREE)
    tally.drain()
    assert record(node, backup(box, TREE).id).is_incremental
    assert tally.counts()[ARCHIVED_BYTES.name, ()] == len("changed\n")


def test_layers_are_laid_on_each_other_until_the_stack_is_deep(node: Node, box: LocalSandbox) -> None:
    depths = []
    for number in range(MAX_DEPTH + 1):
        write(box, f"{TREE}/file", f"{number}")
        made = backup(box, TREE)
        depths.append(record(node, made.id).depth)
        restore(box, made, TREE)
        assert sh(box, "cat file", cwd=TREE) == f"{number}"
    assert depths == [*range(2, MAX_DEPTH + 1), 1, 2]


def test_a_backup_outlives_the_backups_that_it_was_made_from(node: Node, box: LocalSandbox, tmp_path: Path) -> None:
    write(box, f"{TREE}/file", "second")
    second = backup(box, TREE)
    expected = content(node, box)
    parent = record(node, second.id).parent
    assert parent is not None
    node.catalog().discard(record(node, parent))
    with Node(tmp_path / "other", node.bucket, node.driver, identity="other") as other:
        elsewhere = other.sandbox(f"elsewhere-{uuid.uuid4().hex[:8]}")
        restore(elsewhere, second, TREE)
        assert content(other, elsewhere) == expected


def test_a_backup_in_full_is_made_on_request_and_where_incremental_ones_are_off(node: Node, box: LocalSandbox) -> None:
    assert not record(node, backup(box, TREE, full=True).id).is_incremental
    node.adjust(backup=BackupLimits(incremental=False, incremental_min_bytes=0))
    box.close()
    again = node.sandbox(box.id)
    assert not record(node, backup(again, TREE).id).is_incremental


def test_a_file_that_is_excluded_now_is_gone_although_it_is_in_the_layers_below(node: Node, box: LocalSandbox) -> None:
    made = backup(box, TREE, excludes=["gone", "old"])
    assert record(node, made.id).is_incremental
    restore(box, made, TREE)
    names = sh(box, "ls -A", cwd=TREE).split()
    assert "gone" not in names and "old" not in names and "file" in names


def test_a_layer_that_the_collector_may_delete_is_not_built_on(node: Node, box: LocalSandbox) -> None:
    base = record(node, box.info().restored[0].backup_id)
    assert base.sha256 is not None
    store = S3ObjectStore(node.bucket, transfer=FAST)
    mark = keys.layer_mark("default", base.sha256, str(uuid.uuid4()))
    store.put(mark, b"")
    before = node.keys()
    made = record(node, backup(box, TREE).id)
    assert not made.is_incremental and listed(node, made)
    assert not {key for key in node.keys() - before if "/refs/" in key}
    store.delete(mark)
    assert record(node, backup(box, TREE).id).is_incremental


def test_a_directory_restored_inside_the_directory_makes_the_backup_a_full_one(node: Node, box: LocalSandbox) -> None:
    write(box, "/workspace/inner/file", "inner")
    restore(box, backup(box, "/workspace/inner"), f"{TREE}/inner")
    made = backup(box, TREE)
    assert not record(node, made.id).is_incremental
    restore(box, made, TREE)
    assert sh(box, "cat inner/file", cwd=TREE) == "inner"


@pytest.fixture
def plain(node: Node) -> LocalSandbox:
    """A sandbox with a directory of plain files that was just backed up."""
    box = node.sandbox(f"plain-{uuid.uuid4().hex[:8]}")
    make_tree(box)
    backup(box, TREE)
    return box


def test_a_directory_of_plain_files_is_backed_up_as_a_layer(node: Node, plain: LocalSandbox) -> None:
    settled(node, plain)
    backup(plain, TREE, full=True)
    sh(plain, HISTORY, cwd=TREE)
    for depth, text in enumerate(("first", "second"), start=2):
        write(plain, f"{TREE}/file", text)
        expected = content(node, plain)
        made = backup(plain, TREE)
        found = record(node, made.id)
        assert found.depth == depth and found.size_bytes < 20_000
        restore(plain, made, "/workspace/again")
        assert content(node, plain, "/workspace/again") == expected


def test_backups_of_an_unchanged_directory_stay_incremental(node: Node, plain: LocalSandbox) -> None:
    settled(node, plain)
    backup(plain, TREE, full=True)
    expected = content(node, plain)
    depths = [record(node, (made := backup(plain, TREE)).id).depth for _ in range(3)]
    assert depths == [2, 2, 2]
    restore(plain, made, "/workspace/again")
    assert content(node, plain, "/workspace/again") == expected


def test_the_layer_of_plain_files_has_a_listing_of_all_files(node: Node, plain: LocalSandbox) -> None:
    backup(plain, TREE, full=True)
    sh(plain, HISTORY, cwd=TREE)
    made = record(node, backup(plain, TREE).id)
    assert made.is_incremental
    assert listed(node, made) == listed(node, record(node, backup(plain, TREE, full=True).id))


def test_what_the_last_backup_could_not_keep_is_counted_again_only_if_it_was_changed(
    node: Node, plain: LocalSandbox
) -> None:
    sh(plain, "touch -d @-1 file old/a", cwd=TREE)
    settled(node, plain)
    counts = []
    for script in ("true", "echo new > new", "chmod 600 file"):
        sh(plain, script, cwd=TREE)
        made = record(node, backup(plain, TREE).id)
        assert made.is_incremental and made.not_kept is not None
        counts.append(made.not_kept.far_times)
    assert counts == [2, None, 1]


def test_a_backup_of_too_many_changes_is_a_full_one_with_one_listing(node: Node, plain: LocalSandbox) -> None:
    backup(plain, TREE, full=True)
    sh(plain, "head -c 3000000 /dev/urandom > ~large", cwd=TREE)
    made = record(node, backup(plain, TREE).id)
    assert not made.is_incremental
    assert listed(node, made) == listed(node, record(node, backup(plain, TREE, full=True).id))


def test_a_file_excluded_from_the_last_backup_is_in_the_next_layer(node: Node, plain: LocalSandbox) -> None:
    backup(plain, TREE, excludes=["gone", "old"])
    expected = content(node, plain)
    made = backup(plain, TREE)
    assert record(node, made.id).is_incremental
    restore(plain, made, "/workspace/again")
    assert content(node, plain, "/workspace/again") == expected
    without = backup(plain, TREE, excludes=["gone"])
    assert record(node, without.id).is_incremental
    restore(plain, without, "/workspace/without")
    assert sh(plain, "ls -A without/gone without/old/a 2>/dev/null || :") == "without/old/a\n"


def test_a_second_write_to_a_mapped_page_is_in_the_next_layer(node: Node, plain: LocalSandbox) -> None:
    script = (
        "import mmap, os, time\n"
        f"file = open('{TREE}/mapped', 'w+b'); file.truncate(4096); page = mmap.mmap(file.fileno(), 4096)\n"
        "page[0:5] = b'first'; print('mapped', flush=True)\n"
        "while not os.path.exists('/tmp/go'): time.sleep(0.01)\n"
        "page[0:5] = b'again'; open('/tmp/done', 'w').close(); time.sleep(60)\n"
    )
    with command(plain, f'exec python3 -c "{script}"'):
        settled(node, plain)
        backup(plain, TREE)
        sh(plain, "touch /tmp/go; while [ ! -e /tmp/done ]; do sleep 0.01; done")
        made = backup(plain, TREE)
        assert record(node, made.id).is_incremental
    restore(plain, made, "/workspace/again")
    assert sh(plain, "head -c 5 again/mapped") == "again"


def test_backups_beside_a_command_that_writes_all_the_time_miss_nothing(node: Node, plain: LocalSandbox) -> None:
    write(plain, "/workspace/writer.py", WRITER)
    sh(plain, "head -c 3000000 /dev/urandom > more", cwd=TREE)  # beside which all changes together are small
    sh(plain, "for n in $(seq 0 19); do head -c 4096 /dev/urandom > $n; done", cwd=TREE)
    backup(plain, TREE, full=True)
    for _ in range(3):
        with command(plain, f"cd {TREE}; exec python3 ../writer.py"):
            assert record(node, backup(plain, TREE).id).is_incremental
        expected = content(node, plain)
        made = backup(plain, TREE)
        assert record(node, made.id).is_incremental
        restore(plain, made, "/workspace/again")
        assert content(node, plain, "/workspace/again") == expected


def test_backups_of_one_tree_under_several_names_are_each_right(node: Node, plain: LocalSandbox) -> None:
    def check(directory: str, *, is_incremental: bool) -> None:
        settled(node, plain)
        expected = content(node, plain, directory.replace("link", "tree"))
        made = backup(plain, directory)
        assert record(node, made.id).is_incremental == is_incremental
        restore(plain, made, "/app/again")
        assert content(node, plain, "/app/again") == expected

    check("/workspace", is_incremental=False)
    sh(plain, "echo one > tree/file; ln -s tree link")
    check(TREE, is_incremental=True)
    sh(plain, "echo two > tree/file")
    check("/workspace/link", is_incremental=True)
    check("/workspace", is_incremental=True)
    sh(plain, "echo three > tree/file; mv tree away; cp -a away tree; rm tree/gone")
    check(TREE, is_incremental=False)
    sh(plain, "rm -r tree; mv away tree")
    check(TREE, is_incremental=False)
    check("/workspace", is_incremental=True)
    restore(plain, backup(plain, f"{TREE}/moved"), f"{TREE}/old", RestoreMode.COPY)
    write(plain, f"{TREE}/file", "four")
    plain.sleep()
    plain.wake()
    check(TREE, is_incremental=True)
    check("/workspace", is_incremental=True)


def test_fingerprints_that_are_damaged_or_of_another_directory_mean_a_full_backup(
    node: Node, plain: LocalSandbox
) -> None:
    [kept] = (node.home(plain.id) / "fingerprints").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert not record(node, backup(plain, TREE).id).is_incremental
    assert record(node, backup(plain, TREE).id).is_incremental
    sh(plain, "cp -a tree other; rm -r tree; mv other tree")
    assert not record(node, backup(plain, TREE).id).is_incremental


def test_a_missing_layer_is_an_error_and_changes_nothing(node: Node, box: LocalSandbox, tmp_path: Path) -> None:
    write(box, f"{TREE}/file", "second")
    second = record(node, backup(box, TREE).id)
    assert second.layers is not None
    S3ObjectStore(node.bucket, transfer=FAST).delete(keys.layer("default", second.layers[0].sha256))
    with Node(tmp_path / "other", node.bucket, node.driver, identity="other") as other:
        elsewhere = other.sandbox(f"elsewhere-{uuid.uuid4().hex[:8]}")
        write(elsewhere, f"{TREE}/file", "kept")
        with pytest.raises(BackupNotFoundError):
            elsewhere.restore_backup(_options(second.id))
        assert sh(elsewhere, "cat file", cwd=TREE) == "kept"


def _options(backup_id: str) -> RestoreOptions:
    return RestoreOptions(id=backup_id, dir=TREE)
