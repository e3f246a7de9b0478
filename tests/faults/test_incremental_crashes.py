"""kill -9 at every step and request of an incremental backup, and requests that fail: nothing is lost, nothing is left.

The backups are made over a full backup, whose archive becomes a layer, and over an incremental one.
"""

from __future__ import annotations

import itertools
import signal
import uuid
from typing import Literal

import pytest

from actors.errors import BackupCreateError, BackupNotFoundError
from actors.models import BackupOptions, DirectoryBackup
from actors.sandbox.steps import CreateStep
from storage import keys
from storage.errors import StoreUnavailableError
from storage.s3 import S3ObjectStore
from tests.support.killing import Counted
from tests.support.layered import TREE, Below, Files, Layered, gc
from tests.support.s3 import FAST
from tests.support.sandboxes import Node, crash, described, restore, sh

AT_A_REQUEST = "tests.support.programs.increment_killed_at_a_request"
IN_THE_UPLOAD = "tests.support.programs.create_killed_at_a_request"
AT_A_STEP = "tests.support.programs.create_killed_at_a_step"
STEPS = list(CreateStep)

Where = tuple[str, Files, Below]
"""The store, the files of the directory, and the backup below."""
REQUESTS: dict[Where, int] = {("moto", "overlay", "full"): 15, ("rclone", "plain", "incremental"): 19}
"""How many requests the backup makes. There may be one or two more, which note that something is not saved."""
OTHERS: list[Where] = [("rclone", "overlay", "incremental"), ("moto", "plain", "full")]


class Crashing(Layered):
    """Its next backup is made by another process, which dies."""

    def __init__(self, node: Node, files: Files, below: Below, *, added_bytes: int = 0) -> None:
        """`added_bytes` makes the layer larger than that; the archive below is twice as large."""
        large_bytes = max(1_200_000, 2 * added_bytes)
        super().__init__(node, node.sandbox("crashing"), files, below, large_bytes=large_bytes)
        sh(self.box, f"head -c {added_bytes} /dev/urandom > added", cwd=TREE)
        self.expected = self.content()
        self.box.close()

    def check_taken_up(self, *, is_committed: bool | None = None) -> None:
        """A new actor finds all writes and backups; what the dead one has left goes with its settling and a collection.

        `is_committed` is None if the interrupted backup may be there or not.
        """
        begun = set(self.node.state("crashing").pending)
        self.box = self.node.sandbox("crashing")
        assert self.content() == self.expected
        self.box.ownership.check()
        assert self.node.state("crashing").pending == []
        there = self.committed() - self.made.keys()
        assert is_committed is None or len(there) == is_committed
        self.made |= dict.fromkeys(there, self.expected)
        for backup_id in begun - there:
            with pytest.raises(BackupNotFoundError):
                restore(self.box, DirectoryBackup(id=backup_id, dir=TREE))
        gc(self.node)
        self.check_bucket()
        self.check_node()
        self.change()
        assert self.back_up().is_incremental
        self.check_backups()
        self.check_bucket()


@pytest.mark.parametrize(
    ("any_store", "files", "below", "nth"),
    [(*which, nth) for which, count in REQUESTS.items() for nth in range(1, count + 1)],
    indirect=["any_store"],
)
def test_a_crash_before_any_request_of_an_incremental_backup_leaves_it_whole_or_leaves_nothing(
    any_store: Node, files: Files, below: Below, nth: int
) -> None:
    crashing = Crashing(any_store, files, below)
    ended = crash(AT_A_REQUEST, described(any_store), TREE, str(nth))
    assert ended.status == -signal.SIGKILL and "survived" not in ended.stdout, ended
    crashing.check_taken_up()
    crashing.delete()


@pytest.mark.parametrize(("any_store", "files", "below"), REQUESTS, indirect=["any_store"])
def test_an_incremental_backup_makes_no_other_requests(
    request: pytest.FixtureRequest, any_store: Node, files: Files, below: Below
) -> None:
    crashing = Crashing(any_store, files, below)
    names = crash(AT_A_REQUEST, described(any_store), TREE, "0").stdout.partition("survived\n")[2].splitlines()
    expected = REQUESTS[request.node.callspec.params["any_store"], files, below]
    assert expected <= len(names) <= expected + 2, names
    assert any(name.startswith("copy ") for name in names) == (below == "full")
    crashing.check_taken_up(is_committed=True)


@pytest.mark.parametrize(("any_store", "files", "below"), OTHERS, indirect=["any_store"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_after_any_step_of_an_incremental_backup_leaves_it_whole_or_leaves_nothing(
    any_store: Node, files: Files, below: Below, step: CreateStep
) -> None:
    crashing, key = Crashing(any_store, files, below), uuid.uuid4().hex
    ended = crash(AT_A_STEP, described(any_store), TREE, key, step, "after")
    assert ended.status == -signal.SIGKILL and "survived" not in ended.stdout, ended
    is_committed = STEPS.index(step) >= STEPS.index(CreateStep.COMMIT)
    crashing.check_taken_up(is_committed=is_committed)
    repeated = crashing.box.create_backup(BackupOptions(dir=TREE), idempotency_key=key)
    assert (repeated.id in crashing.made) == is_committed


@pytest.mark.parametrize("any_store", ["rclone", "moto"], indirect=True)
@pytest.mark.parametrize(
    ("method", "when", "nth"),
    [("create_upload", "after", 1), ("presign_part", "after", 2), ("complete_upload", "before", 1)],
)
def test_a_crash_while_the_parts_of_a_layer_are_sent_leaves_nothing(
    any_store: Node, method: str, when: str, nth: int
) -> None:
    crashing = Crashing(any_store, "overlay", "full", added_bytes=6_000_000)
    ended = crash(IN_THE_UPLOAD, described(any_store), TREE, method, when, str(nth), "/layers/")
    assert ended.status == -signal.SIGKILL and "survived" not in ended.stdout, ended
    assert list(any_store.catalog().store.list_uploads(keys.LAYERS_ROOT))
    crashing.check_taken_up(is_committed=False)


class Failing:
    """Requests that fail: they have no effect, or an effect but no answer."""

    def __init__(self, node: Node, files: Files, below: Below) -> None:
        self.store = Counted(S3ObjectStore(node.bucket, transfer=FAST), self._fail)
        self.layered = Layered(node, node.sandbox(catalog=node.catalog(self.store)), files, below)
        self.base, self.first = self.layered.latest, set(self.layered.made)

    def _fail(self) -> None:
        raise StoreUnavailableError("fail", bucket="failing", key=self.store.names[-1].split()[1])

    def check(self, nth: int, when: Literal["before", "after"]) -> bool:
        """Makes a backup whose nth request fails, then one whose requests do not. Returns False if it makes fewer."""
        layered = self.layered
        self.store.begin(nth, when)
        error = None
        try:
            layered.back_up()
        except BackupCreateError as e:
            error = e
        was_hit = self.store.end()
        there = layered.committed() - layered.made.keys()
        assert error is None or error.context["reason"] == "STORAGE_UNAVAILABLE", self.store.names
        assert not there or (error is not None and error.context.get("outcome") == "unknown"), self.store.names
        layered.made |= dict.fromkeys(there, layered.content())
        layered.change()
        layered.back_up()
        assert layered.node.state("box").pending == []
        gc(layered.node)
        layered.check_bucket()
        layered.check_node()
        return was_hit

    def begin_again(self) -> None:
        """Deletes what was made since the beginning, so that the next backup makes the same requests."""
        layered = self.layered
        layered.delete(but=self.first if layered.files == "overlay" else ())
        if layered.files == "overlay":
            restore(layered.box, self.base)
        else:
            layered.back_up(full=True)
        layered.change()
        if layered.files == "plain" and layered.below == "incremental":
            layered.back_up()
            layered.change()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("any_store", "files", "below"), REQUESTS, indirect=["any_store"])
def test_a_failed_request_of_an_incremental_backup_costs_at_most_that_backup(
    any_store: Node, files: Files, below: Below, when: Literal["before", "after"]
) -> None:
    """`when` the request failed before it had an effect, as with a 503; or after it, as with a lost answer."""
    failing = Failing(any_store, files, below)
    for nth in itertools.count(1):
        if not failing.check(nth, when):
            break
        failing.begin_again()
    failing.layered.check_backups()
    assert nth > 12
