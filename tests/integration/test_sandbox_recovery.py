"""Recovery from backups of a sandbox that is lost or slept on another node; a superseded actor changes nothing.

Two nodes on this machine share a bucket: "a" has the sandbox first, "b" takes it over.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from actors.errors import (
    BackupCreateError,
    InvalidBackupConfigError,
    SandboxUnavailableError,
    StorageUnavailableError,
)
from actors.models import DirectoryBackup, ForgetOptions
from actors.node import mountinfo
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from actors.state.document import StateRead
from storage import keys
from storage.config import BucketConfig
from storage.errors import StoreUnavailableError
from storage.s3 import S3ObjectStore
from storage.store import ObjectStore
from tests.support.faulty_store import FaultyStore
from tests.support.held_store import AwayStore, HeldStore
from tests.support.mount_leaks import open_files, wait_until
from tests.support.node_pair import Pair, pair
from tests.support.s3 import moto_s3
from tests.support.sandboxes import (
    Background,
    Crashed,
    Node,
    backup,
    crash,
    described,
    restore,
    sh,
    write,
)
from tests.support.trees import Entry, fingerprint, make_interesting_tree


@pytest.fixture
def nodes(scratch: Path, bucket: BucketConfig, best_driver: Driver) -> Iterator[Pair]:
    yield from pair(scratch, bucket, best_driver, conditional=False)


@pytest.fixture(scope="module")
def moto() -> Iterator[BucketConfig]:
    with moto_s3(bucket="recovery") as config:
        yield config


@pytest.fixture(params=["conditional", "unconditional"])
def either(
    request: pytest.FixtureRequest, scratch: Path, bucket: BucketConfig, moto: BucketConfig, best_driver: Driver
) -> Iterator[Pair]:
    """Nodes with a bucket that has conditional writes, and nodes with a bucket that has none."""
    conditional = request.param == "conditional"
    yield from pair(scratch, moto if conditional else bucket, best_driver, conditional=conditional)


@pytest.fixture
def each_driver(scratch: Path, bucket: BucketConfig, driver: Driver) -> Iterator[Pair]:
    yield from pair(scratch, bucket, driver, conditional=False)


def recovered(pair: Pair) -> list[tuple[str, str, str | None]]:
    """Returns the recovery's rows in the state."""
    found = pair.state.recovery
    assert found is not None and found.lost_node == pair.a.layout.identity()
    return [(row.dir, row.backup_id, row.error) for row in found.directories]


def closed(box: LocalSandbox) -> bool:
    """True if no caller can see the tree."""
    try:
        with box.parts.tree_lock.shared():
            return False
    except SandboxUnavailableError:
        return True


def killed(ended: Crashed) -> None:
    """Checks that the process reached its breakpoint and was killed there."""
    assert ended.status == -signal.SIGKILL, ended
    assert "ready\n" in ended.stdout and "survived" not in ended.stdout, ended


# --- a node is lost


def test_a_lost_sandbox_is_recovered_elsewhere_from_its_last_backups(each_driver: Pair) -> None:
    pair = each_driver
    box = pair.on_a()
    sh(box, "mkdir data; echo old > data/file; echo parent > file; mkdir -p ~/copied; echo copy > ~/copied/file")
    copied = backup(box, "/home/sandbox/copied")
    outer = backup(box)
    sh(box, "echo new > data/file; echo lost > file; echo lost > lost")
    inner = backup(box, "/workspace/data")
    restore(box, inner, "/app/fork")
    restore(box, copied, mode="copy")
    sh(box, "echo lost > data/later; echo lost > /app/fork/later; echo lost > ~/copied/later; echo lost > /tmp/file")

    again = pair.on_b()

    assert sh(again, "cat file data/file /app/fork/file ~/copied/file") == "parent\nnew\nnew\ncopy\n"
    assert sh(again, "ls -A . data /app /app/fork ~ ~/copied /tmp") == (
        ".:\ndata\nfile\n\n/app:\nfork\n\n/app/fork:\nfile\n\n/home/sandbox:\ncopied\n\n"
        "/home/sandbox/copied:\nfile\n\n/tmp:\n\ndata:\nfile\n"
    )
    expected = [
        ("/app/fork", inner.id, None),
        ("/home/sandbox/copied", copied.id, None),
        ("/workspace", outer.id, None),
        ("/workspace/data", inner.id, None),
    ]
    assert sorted(recovered(pair)) == expected
    record = again.parts.restored.record.recovery
    assert record is not None and record.lost_node == pair.a.layout.identity()
    assert sorted((row.dir, row.backup_id, row.error) for row in record.directories) == expected
    assert sorted((row.dir, row.backup_id, row.mode) for row in again.info().restored) == [
        ("/app/fork", inner.id, "overlay"),
        ("/home/sandbox/copied", copied.id, "copy"),
        ("/workspace", outer.id, "overlay"),
        ("/workspace/data", inner.id, "overlay"),
    ]
    b = pair.b.layout.identity()
    assert (pair.state.node, pair.state.cluster_node) == (b, f"cluster-{b}")
    again.close()
    assert sh(pair.on_b(), "cat file data/file") == "parent\nnew\n"


def test_backups_and_restores_record_a_directorys_real_path(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "mkdir -p real/inner; echo 1 > real/inner/file; ln -s real link; ln -s real/inner further")

    def known() -> list[tuple[str, str]]:
        return [(row.dir, row.backup_id) for row in nodes.state.checkpoints]

    made = {}
    for directory in ("/workspace/link/inner", "/workspace/further", "/workspace/real/inner"):
        handle = made[directory] = backup(box, directory)
        assert handle.dir == directory, "the caller's word for it"
        assert known() == [("/workspace/real/inner", handle.id)]
    sh(box, "echo 2 > real/inner/file")
    restore(box, made["/workspace/further"])
    assert known() == [("/workspace/real/inner", made["/workspace/further"].id)]
    assert sh(nodes.on_b(), "find . -type f; cat real/inner/file") == "./real/inner/file\n1\n"


def test_a_directory_restored_through_several_links_is_listed_once_by_its_real_path(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "mkdir real; echo 1 > real/file; ln -s real link; ln -s link further")
    handle = backup(box, "/workspace/further")
    for directory in ("/workspace/link", "/workspace/further", "/workspace/real"):
        restore(box, handle, directory)
        assert [(row.dir, row.backup_id) for row in box.info().restored] == [("/workspace/real", handle.id)]
        assert [(row.dir, row.backup_id) for row in nodes.state.restored] == [("/workspace/real", handle.id)]
    nodes.store.delete(keys.archive(handle.id))
    again = nodes.on_b(awake=False)
    with pytest.raises(SandboxUnavailableError) as raised:
        sh(again, "ls")
    assert raised.value.context["missing"] == ["/workspace/real"]
    (row,) = again.forget(ForgetOptions(dir="/workspace/real")).forgotten
    assert (row.dir, row.backup_id) == ("/workspace/real", handle.id)


def test_a_lost_sandbox_without_a_backup_is_empty_and_says_so(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "echo lost > file")
    box.sleep()
    again = nodes.on_b()
    assert sh(again, "ls -A") == ""
    assert recovered(nodes) == []


def test_a_recovery_interrupted_by_the_bucket_shows_nothing_and_resumes(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "mkdir a b; echo 1 > a/file; echo 2 > b/file")
    first, second = backup(box, "/workspace/a"), backup(box, "/workspace/b")
    faulty = FaultyStore(nodes.store)
    again = nodes.on_b(catalog=nodes.b.catalog(faulty), awake=False)
    for _ in range(2):
        faulty.fail("get", second.id, after=False)
        with pytest.raises(SandboxUnavailableError) as raised:
            again.list_files("/workspace")
        assert raised.value.context == {"outcome": "not_executed", "reason": "STORAGE_UNAVAILABLE"}
        assert not again.is_awake and closed(again)
    assert sh(again, "cat a/file b/file") == "1\n2\n"
    assert sum(first.id in call for call in faulty.calls if call.startswith("get ")) == 1
    assert sorted(recovered(nodes)) == [("/workspace/a", first.id, None), ("/workspace/b", second.id, None)]


KILLED = "tests.support.programs.wake_killed_at_a_call"
MOMENTS = [
    ("wake_steps", "_put_aside", 1, "after"),
    ("ownership", "_settle", 1, "before"),
    ("ownership", "acquire_epoch", 1, "after"),
    ("restored", "begin_recovery", 1, "after"),
    ("recovery", "_bring_one_back", 1, "after"),
    ("record", "commit", 2, "before"),
    ("ownership", "report", 1, "before"),
]


@pytest.mark.parametrize(("place", "method", "number", "when"), MOMENTS)
@pytest.mark.parametrize("asleep", [False, True])
def test_a_killed_recovery_is_completed_by_the_next_actor(
    nodes: Pair, place: str, method: str, number: int, when: str, *, asleep: bool
) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file; echo 2 > /app/file")
    if asleep:
        box.sleep(box.back_up_for_sleep())
    else:
        backup(box), backup(box, "/app")
    ended = crash(KILLED, described(nodes.b), nodes.name, place, method, str(number), when)
    killed(ended)

    again = nodes.on_b()

    assert sh(again, "cat file /app/file; ls -A . /app") == "1\n2\n.:\nfile\n\n/app:\nfile\n"
    sh(again, "echo later > later")
    again.ownership.change(lambda state: state)
    if asleep:
        assert nodes.state.recovery is None
    else:
        assert [row[0] for row in sorted(recovered(nodes))] == ["/app", "/workspace"]
    again.close()
    assert sh(nodes.on_b(), "cat file later") == "1\nlater\n"


# --- the old actor still runs


@pytest.mark.parametrize(("operation", "part"), [("presign_put", "data.sqsh"), ("put", "meta.json")])
def test_an_actor_superseded_during_a_backup_commits_nothing(either: Pair, operation: str, part: str) -> None:
    pair = either
    old = pair.on_a()
    sh(old, "echo safe > file")
    safe = backup(old)
    old.close()
    held = HeldStore(pair.store, operation, part)
    held_catalog = pair.a.catalog(held)
    old = pair.on_a(catalog=held_catalog)
    sh(old, "echo late > file")
    before = pair.a.keys()
    late = Background(lambda: backup(old))
    held.wait()

    new = pair.on_b()
    held.released.set()
    error = late.error()

    if operation == "put" and not pair.conditional:  # checked before the takeover; an unconditional put succeeds
        assert error is None
        assert len(pair.backups) == 2
    else:
        assert isinstance(error, SandboxUnavailableError)
        assert error.context["reason"] == "SUPERSEDED"
        left = {key for key in pair.a.keys() - before if key.startswith("backups/")}
        assert {pair.store.get(key).data for key in left} == ({b'{"fenced":true}'} if pair.conditional else set())
        assert list(pair.backups) == [safe.id]
    assert sh(new, "cat file") == "safe\n"
    assert [row.backup_id for row in pair.state.checkpoints] == [safe.id]
    with pytest.raises(SandboxUnavailableError) as raised:
        sh(old, "true")
    assert raised.value.context["reason"] == "SUPERSEDED"
    backup(new)


def test_a_backup_committed_before_the_takeover_is_recovered(either: Pair) -> None:
    pair = either
    old = pair.on_a()
    sh(old, "echo old > file")
    backup(old)
    old.close()
    held = HeldStore(pair.store, "put", f"sandboxes/{pair.name}/backups/")
    old = pair.on_a(catalog=pair.a.catalog(held))
    sh(old, "echo new > file")
    making = Background(lambda: backup(old))
    held.wait()

    new = pair.on_b()
    held.released.set()
    made = making.result()

    assert sh(new, "cat file") == "new\n"
    assert recovered(pair) == [("/workspace", made.id, None)]
    assert pair.state.pending == []
    assert made.id in pair.backups


def test_a_takeover_aborts_a_running_upload(either: Pair) -> None:
    """The old actor's uploaded parts are gone when it wants to complete the upload."""
    pair = either
    held = HeldStore(pair.store, "complete_upload", "data.sqsh")
    old = pair.on_a(catalog=pair.a.catalog(held))
    sh(old, "head -c 7000000 /dev/urandom > file")
    late = Background(lambda: backup(old))
    held.wait()
    new = pair.on_b()
    held.released.set()
    error = late.error()
    assert isinstance(error, SandboxUnavailableError), repr(error)
    assert error.context["reason"] == "SUPERSEDED"
    assert sh(new, "ls -A") == ""
    assert pair.backups == {}


def test_a_node_that_comes_back_does_not_show_outdated_files(nodes: Pair) -> None:
    old = nodes.on_a()
    sh(old, "echo first > file; echo stale > stale")
    backup(old)
    old.close()
    new = nodes.on_b()
    sh(new, "rm stale; echo second > file")
    with pytest.raises(SandboxUnavailableError) as raised:
        nodes.on_a()
    assert raised.value.context == {"outcome": "not_executed", "reason": "ELSEWHERE"}
    backup(new)
    new.close()

    again = nodes.on_a(lost=["b"])

    assert sh(again, "cat file; ls -A") == "second\nfile\n"
    recovery = nodes.state.recovery
    assert recovery is not None and recovery.lost_node == nodes.b.layout.identity()
    assert nodes.state.epoch == 3


def test_a_node_that_comes_back_wakes_the_newer_files_that_slept_elsewhere(nodes: Pair) -> None:
    old = nodes.on_a()
    sh(old, "echo first > file; echo stale > stale")
    backup(old)
    old.close()
    new = nodes.on_b()
    sh(new, "rm stale; echo second > file")
    new.sleep(new.back_up_for_sleep())
    assert sh(nodes.on_a(), "cat file; ls -A") == "second\nfile\n"


# --- the bucket is away


def test_without_the_bucket_a_sandbox_works_only_on_a_node_with_its_record(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file")
    handle = backup(box)
    box.close()
    away = AwayStore(nodes.store)
    catalog = nodes.a.catalog(away)
    away.is_away = True
    for awaiting in (nodes.on_b(catalog=catalog, awake=False), nodes.b.sandbox("sb-new", catalog=catalog, awake=False)):
        with pytest.raises(SandboxUnavailableError) as raised:
            sh(awaiting, "true")
        assert raised.value.context == {"outcome": "not_executed", "reason": "STORAGE_UNAVAILABLE"}
    box = nodes.on_a(catalog=catalog)
    assert sh(box, "cat file") == "1\n"
    sh(box, "echo 2 > file")
    with pytest.raises(StorageUnavailableError):  # if it slept now, the bucket would not know that its files are here
        box.sleep()
    assert box.is_awake
    epoch = nodes.state.epoch
    with pytest.raises(BackupCreateError):
        backup(box)
    assert nodes.state.epoch == epoch

    away.is_away = False
    newer = backup(box)

    assert nodes.state.epoch == epoch + 1
    assert [row.backup_id for row in nodes.state.checkpoints] == [newer.id]
    assert nodes.state.pending == []
    restore(box, handle)
    assert sh(box, "cat file") == "1\n"


def test_an_epoch_claimed_after_a_takeover_changes_nothing(either: Pair) -> None:
    pair = either
    box = pair.on_a()
    sh(box, "echo 1 > file")
    backup(box)
    box.close()
    away = AwayStore(pair.store)
    away.is_away = True
    old = pair.on_a(catalog=pair.a.catalog(away))
    new = pair.on_b()
    sh(new, "echo new > file")
    before = pair.state
    away.is_away = False
    with pytest.raises(SandboxUnavailableError) as raised:
        backup(old)
    assert raised.value.context["reason"] == "SUPERSEDED"
    with pytest.raises(SandboxUnavailableError):
        old.destroy()
    assert pair.state == before
    assert sh(new, "cat file") == "new\n"


# --- sleeping with backups


def left_on(node: Node) -> tuple[list[str], Sequence[object]]:
    boxes = node.layout.root / "boxes"
    return [str(path) for path in boxes.glob("*/*")], mountinfo.mounts_under(boxes)


def furnished(box: LocalSandbox, node: Node) -> dict[str, dict[bytes, Entry]]:
    """Fills a sandbox with everything that a backup can keep; returns its content."""
    make_interesting_tree(node.tree(box) / "workspace" / "tree", node.owner(box), max_name_bytes=200)
    sh(
        box,
        "mkdir sub; echo 1 > sub/file; chmod 2710 sub; chmod 640 sub/file; echo x > one; echo x > two; echo x > six",
    )
    handle = backup(box, "/workspace/sub")
    restore(box, handle, "/workspace/again")
    restore(box, handle, "/var/tmp/copied", "copy")
    sh(
        box,
        "echo 2 > again/more; echo 3 > /tmp/file; ln -s /workspace/one /app/link; echo rc > ~/.rc; chmod 600 ~/.rc",
    )
    return contents(box, node)


def contents(box: LocalSandbox, node: Node) -> dict[str, dict[bytes, Entry]]:
    return {
        top: fingerprint(node.tree(box) / top.lstrip("/"))
        for top in ("/workspace", "/home", "/tmp", "/var/tmp", "/app")
    }


def test_a_sandbox_put_to_sleep_leaves_its_node_and_wakes_on_another(each_driver: Pair) -> None:
    pair = each_driver
    box = pair.on_a()
    expected = furnished(box, pair.a)
    in_bed = box.back_up_for_sleep()
    assert contents(box, pair.a) == expected
    assert {row.dir for row in in_bed} == {"/workspace", "/home", "/tmp", "/var/tmp", "/app"}
    box.sleep(in_bed)
    assert left_on(pair.a) == ([], [])
    assert list((pair.a.layout.root / "presence").iterdir()) == []
    state = pair.state
    assert (state.node, state.cluster_node, state.restored) == (None, None, [])

    again = pair.b.sandbox(pair.name)

    assert contents(again, pair.b) == expected
    assert pair.state.node == pair.b.layout.identity()
    assert pair.state.recovery is None
    assert sh(again, "cat one ~/.rc /app/link") == "x\nrc\nx\n"


def test_an_empty_sandbox_sleeps_without_a_backup(nodes: Pair) -> None:
    box = nodes.on_a()
    assert box.back_up_for_sleep() == []
    box.sleep([])
    assert left_on(nodes.a) == ([], [])
    again = nodes.b.sandbox(nodes.name)
    assert sh(again, "ls -A . ~ /tmp") == ".:\n\n/home/sandbox:\n\n/tmp:\n"
    assert nodes.state.node == nodes.b.layout.identity()
    assert nodes.backups == {}


def test_a_second_sleep_deletes_only_the_backups_of_the_first(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file; echo 1 > ~/file")
    own = backup(box, name="mine")
    first = box.back_up_for_sleep()
    box.sleep(first)
    again = nodes.on_b(lost=())
    restore(again, own, "/app/mine")
    second = again.back_up_for_sleep()
    abandoned = {row.backup_id for row in second}
    third = again.back_up_for_sleep()  # a call came in between
    again.sleep(third)
    kept = {own.id, *(row.backup_id for row in third)}
    assert set(nodes.backups) == kept
    assert not kept & abandoned
    assert set(nodes.state.sleep_backups) == kept - {own.id}
    assert sh(nodes.on_a(), "cat file ~/file /app/mine/file") == "1\n1\n1\n"


def test_an_unchanged_sandbox_sleeps_again_with_the_same_backups(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file; echo 1 > ~/file")
    first = box.back_up_for_sleep()
    box.sleep(first)
    again = nodes.on_b(lost=())
    assert [entry.name for entry in again.list_files("/workspace")] == ["file"]
    assert again.back_up_for_sleep() == first
    again.sleep(first)
    assert set(nodes.backups) == {row.backup_id for row in first}


def test_a_command_during_the_end_of_a_wake_is_saved_by_the_next_sleep(
    nodes: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file")
    first = box.back_up_for_sleep()
    box.sleep(first)
    again = nodes.on_b(lost=(), awake=False)
    report, commands = again.ownership.report, list[Background[str]]()

    def while_it_reports(change: Any) -> None:
        assert again.is_awake
        commands.append(Background(lambda: sh(again, "echo 2 > file")))
        assert wait_until(lambda: again.sleep_backups.safe_in is None)
        report(change)

    monkeypatch.setattr(again.ownership, "report", while_it_reports)
    again.wake()
    commands[0].result()
    monkeypatch.undo()
    again.sleep(again.back_up_for_sleep())
    assert sh(nodes.on_a(), "cat file") == "2\n"


CHANGES: dict[str, Callable[[LocalSandbox], object]] = {
    "command": lambda box: sh(box, "true"),
    "file": lambda box: write(box, "/workspace/file", b"2"),
    "deletion": lambda box: box.delete_file("/workspace/file"),
    "tar": lambda box: box.abort(box.open_hydrate()),
    "restore": lambda box: restore(box, DirectoryBackup(id=box.ownership.state.checkpoints[0].backup_id, dir="/app")),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_sandbox_that_may_have_changed_is_backed_up_again(nodes: Pair, change: str) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file")
    first = box.back_up_for_sleep()
    box.sleep(first)
    again = nodes.on_b(lost=())
    CHANGES[change](again)
    second = again.back_up_for_sleep()
    assert second != first
    assert not {row.backup_id for row in first} & {row.backup_id for row in second}


def test_other_sandboxes_cannot_restore_the_backups_for_sleeping(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file")
    (in_bed,) = (row for row in box.back_up_for_sleep() if row.dir == "/workspace")
    other = nodes.a.sandbox("somebody-else")
    with pytest.raises(InvalidBackupConfigError, match="sleep"):
        restore(other, DirectoryBackup(id=in_bed.backup_id, dir="/workspace"))
    assert sh(other, "ls -A") == ""
    restore(box, DirectoryBackup(id=in_bed.backup_id, dir="/workspace"))
    assert sh(box, "cat file") == "1\n"


class Flapping:
    """A store that does not answer from the first write of metadata until the next read of a state."""

    def __init__(self, inner: S3ObjectStore, when: str, then: Callable[[], object] = lambda: None) -> None:
        self._inner, self._when, self._then = inner, when, then
        self._is_away, self._was_away = False, False
        self.deleted: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in ("get", "put", "delete"):
            return method

        def call(key: str, *args: Any, **options: Any) -> Any:
            if name == "put" and key.endswith("meta.json") and not self._was_away:
                self._is_away = self._was_away = True
                if self._when == "after":
                    method(key, *args, **options)
            if self._is_away and name == "get" and key.endswith("state.json"):
                self._is_away = False
                self._then()
            if self._is_away:
                raise StoreUnavailableError(name, bucket="away", key=key)
            if name == "delete":
                self.deleted.append(key)
            return method(key, *args, **options)

        return call


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_backup_whose_commit_got_no_answer_is_either_kept_or_removed(either: Pair, when: str) -> None:
    store = Flapping(either.store, when)
    box = either.on_a(catalog=either.a.catalog(cast(ObjectStore, store)))
    sh(box, "echo 1 > file")
    box.ownership.change(lambda state: state)
    if either.conditional and when == "after":
        made = backup(box)
        assert set(either.backups) == {made.id}
        assert [row.backup_id for row in either.state.checkpoints] == [made.id]
        assert not [key for key in store.deleted if "backups/" in key]
    else:
        with pytest.raises(BackupCreateError) as raised:
            backup(box)
        assert "outcome" not in raised.value.context
        assert either.backups == {}
        assert either.state.checkpoints == []
        assert any(key.endswith("data.sqsh") for key in store.deleted)
        assert any(key.endswith("meta.json") for key in store.deleted) is not either.conditional
    assert either.state.pending == []
    backup(box)


def test_a_backup_adopted_by_the_next_actor_succeeds_for_the_first(nodes: Pair) -> None:
    successors: list[LocalSandbox] = []
    store = Flapping(nodes.store, "after", lambda: successors.append(nodes.on_b()))
    box = nodes.on_a(catalog=nodes.a.catalog(cast(ObjectStore, store)))
    sh(box, "echo 1 > file")
    box.ownership.change(lambda state: state)
    made = backup(box)
    assert box.ownership.is_superseded
    assert set(nodes.backups) == {made.id}
    assert [row.backup_id for row in nodes.state.checkpoints] == [made.id]
    assert sh(successors[0], "cat file") == "1\n"


def test_backups_for_sleeping_are_deleted_once_the_sandbox_has_newer_backups(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file")
    box.sleep(box.back_up_for_sleep())
    again = nodes.on_b(lost=())
    own = backup(again)
    again.sleep()
    assert set(nodes.backups) == {own.id}
    assert sh(nodes.on_b(), "cat file") == "1\n"


DIES_ASLEEP = "tests.support.programs.killed_falling_asleep"


@pytest.mark.parametrize("then", ["a", "b"])
def test_a_crash_between_writing_the_state_and_deleting_the_files_loses_nothing(nodes: Pair, then: str) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file; echo 2 > ~/file")
    box.close()
    ended = crash(DIES_ASLEEP, described(nodes.a), nodes.name)
    killed(ended)
    assert nodes.state.node is None
    assert nodes.a.home(nodes.name).exists()
    again = nodes.on_a() if then == "a" else nodes.b.sandbox(nodes.name)
    assert sh(again, "cat file ~/file") == "1\n2\n"
    sh(again, "echo later > file")
    again.ownership.change(lambda state: state)
    assert nodes.state.node == (nodes.a if then == "a" else nodes.b).layout.identity()
    if then == "b":
        again.sleep(again.back_up_for_sleep())
        assert sh(nodes.on_a(), "cat file ~/file") == "later\n2\n"
    else:
        again.close()
        assert sh(nodes.on_a(), "cat file ~/file") == "later\n2\n"


def test_a_sandbox_that_cannot_go_to_sleep_stays_as_it_is(nodes: Pair) -> None:
    away = AwayStore(nodes.store)
    box = nodes.on_a(catalog=nodes.a.catalog(away))
    sh(box, "echo 1 > file")
    in_bed = box.back_up_for_sleep()
    away.is_away = True
    with pytest.raises(StorageUnavailableError):
        box.sleep(in_bed)
    assert not box.is_awake
    assert sh(box, "cat file") == "1\n"
    sh(box, "echo 2 > file")
    assert box.must_stay
    with pytest.raises(StorageUnavailableError):
        box.sleep()  # the bucket may name the older files as the newest
    away.is_away = False
    box.close()
    assert sh(nodes.on_a(), "cat file") == "2\n"
    assert wait_until(lambda: nodes.state.node == nodes.a.layout.identity())


def test_a_sandbox_that_could_not_go_to_sleep_holds_nothing_of_its_node(nodes: Pair) -> None:
    away = AwayStore(nodes.store)
    box = nodes.on_a(catalog=nodes.a.catalog(away))
    sh(box, "echo 1 > file")
    in_bed = box.back_up_for_sleep()

    def held() -> list[str]:
        return [file for file in open_files() if file.startswith(str(nodes.a.layout.root))]

    assert held(), "its lock, and the owner of its user namespace"
    away.is_away = True
    with pytest.raises(StorageUnavailableError):
        box.sleep(in_bed)
    assert wait_until(lambda: held() == []), held()
    away.is_away = False
    assert sh(box, "cat file") == "1\n"


def test_only_an_awake_sandbox_can_go_to_sleep(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file")
    in_bed = box.back_up_for_sleep()
    box.close()
    with pytest.raises(SandboxUnavailableError):
        box.sleep(in_bed)
    assert sh(box, "cat file") == "1\n"


# --- destroying


def test_destroying_a_sleeping_sandbox_deletes_its_backups_for_sleeping(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file")
    own = backup(box, name="mine")
    box.sleep(box.back_up_for_sleep())
    assert len(nodes.backups) == 2
    nodes.on_b(awake=False).destroy()
    assert set(nodes.backups) == {own.id}
    assert not nodes.is_known
    assert sh(nodes.on_a(), "ls -A") == ""


def test_a_late_preparation_of_a_call_does_not_wake_a_destroyed_sandbox(nodes: Pair) -> None:
    box = nodes.on_a(awake=False)
    box.destroy()
    box.prepare(StateRead(None), wake=True)
    assert not box.is_awake
    assert left_on(nodes.a) == ([], [])
    fresh = nodes.on_a(awake=False)
    fresh.prepare(StateRead(None), wake=True)
    assert fresh.is_awake


def test_a_restarted_actor_wakes_only_an_existing_sandbox(nodes: Pair) -> None:
    nothing = nodes.on_a(awake=False)
    nothing.come_back()
    assert not nothing.is_awake and not nodes.is_known
    box = nodes.on_a()
    sh(box, "echo 1 > file")
    backup(box)
    box.close()
    again = nodes.on_a(awake=False)
    again.come_back()
    assert again.is_awake
    again.close()
    elsewhere = nodes.on_b(awake=False)
    elsewhere.come_back()
    assert elsewhere.is_awake and recovered(nodes)[0][0] == "/workspace"
    elsewhere.destroy()
    elsewhere.come_back()
    nodes.on_b(awake=False).come_back()
    assert not nodes.is_known


def test_a_destroyed_sandbox_stays_destroyed_when_its_actor_leaves(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "echo 1 > file")
    backup(box)
    box.destroy()
    box.sleep()
    box.ownership._catching_up.step()
    assert not nodes.is_known
    assert left_on(nodes.a)[1] == []


def test_a_call_during_a_deletion_brings_nothing_back(nodes: Pair) -> None:
    held = HeldStore(nodes.store, "delete", f"sandboxes/{nodes.name}/state.json")
    box = nodes.on_a(catalog=nodes.a.catalog(held))
    sh(box, "echo secret > file")
    backup(box)
    destroying = Background(box.destroy)
    held.wait()
    listing = Background(lambda: box.list_files("/workspace"))
    held.released.set()
    destroying.result()
    assert listing.result() == []
    assert sh(box, "ls -A") == ""


# --- the record of the node


def test_the_record_is_read_only_once_the_sandbox_lock_is_held(nodes: Pair) -> None:
    first = nodes.on_a()
    sh(first, "mkdir data; echo 1 > data/file")
    handle = backup(first, "/workspace/data")
    second = nodes.on_a(awake=False)
    restore(first, handle)
    sh(first, "echo 2 > data/later")
    first.close()
    assert sh(second, "cat data/file data/later") == "1\n2\n"
