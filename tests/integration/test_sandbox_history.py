"""Random histories of a sandbox on two nodes, compared with a simple model of its content."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from actors.config import BackupLimits
from actors.errors import BackupCreateError
from actors.models import DirectoryBackup, RestoreMode
from actors.node import mounting
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from storage.collect import collect
from storage.config import BucketConfig
from storage.store import ObjectStore
from tests.support.faulty_store import FaultyStore
from tests.support.mount_leaks import nothing_leaks
from tests.support.sandboxes import Node, backup, restore, sh, write

NODES = ("a", "b")
DIRECTORIES = ("/workspace", "/workspace/sub", "/app")
FILES = ("/workspace/file", "/workspace/sub/file", "/app/file", "/home/sandbox/file")
Content = dict[str, str]

STEPS = st.one_of(
    st.tuples(st.sampled_from(["write", "put", "remove"]), st.sampled_from(FILES)),
    st.tuples(st.sampled_from(["backup", "save", "save", "fail"]), st.sampled_from(DIRECTORIES)),
    st.tuples(st.sampled_from(["restore", "restore copy"]), st.integers(0, 5)),
    st.tuples(st.sampled_from(["sleep", "sleep nowhere", "lose", "crash", "tidy up"]), st.none()),
)


def within(content: Content, directory: str) -> Content:
    return {path: data for path, data in content.items() if path.startswith(directory + "/")}


def without(content: Content, directory: str) -> Content:
    return {path: data for path, data in content.items() if not path.startswith(directory + "/")}


@dataclass
class Model:
    """The content that a sandbox must have, and the content that a recovery must bring back."""

    now: Content = field(default_factory=dict)
    safe: dict[str, Content] = field(default_factory=dict)
    """By directory; outer directories come before those inside them."""

    def keep(self, directory: str, content: Content) -> None:
        self.safe = {other: kept for other, kept in self.safe.items() if not (other + "/").startswith(directory + "/")}
        self.safe[directory] = content

    def lose(self) -> None:
        self.now = {}
        for directory, content in sorted(self.safe.items()):
            self.now = without(self.now, directory) | content


class History:
    """A sandbox on two nodes; each step is applied to the sandbox and to its model."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self.nodes = nodes
        self.at = "a"
        self.name = f"sb-{uuid.uuid4().hex[:12]}"
        self.model = Model()
        self.made: list[tuple[DirectoryBackup, Content]] = []
        self.actors: dict[str, LocalSandbox] = {}
        """Latest actor on each node. It lives on when its node is lost, and has ended when the node comes back."""
        self.count = 0
        self.box = self.wake()

    def wake(self, *, lost: str | None = None, store: ObjectStore | None = None) -> LocalSandbox:
        before = self.actors.get(self.at)
        if before is not None and before.is_awake:
            before.close()
        box = self.actors[self.at] = self.nodes[self.at].sandbox(
            self.name, lost=[lost] if lost else [], catalog=self.nodes[self.at].catalog(store)
        )
        box.ownership.check()  # its epoch is claimed: another test has the earlier crash
        return box

    def write(self, path: str) -> None:
        self.count += 1
        sh(self.box, f"mkdir -p $(dirname {path}); echo {self.count} > {path}")
        self.model.now[path] = str(self.count)

    def put(self, path: str) -> None:
        self.count += 1
        write(self.box, path, str(self.count))
        self.model.now[path] = str(self.count)

    def remove(self, path: str) -> None:
        sh(self.box, f"rm -f {path}")
        self.model.now.pop(path, None)

    def _prepare(self, directory: str) -> None:
        """Makes the directory if it is missing, and gives it what makes incremental backups pay."""
        sh(self.box, f"mkdir -p {directory}; cd {directory}; [ -e ballast ] || head -c 100000 /dev/urandom > ballast")

    def fail(self, directory: str) -> None:
        """A backup that is made, and then cannot be committed."""
        self._prepare(directory)
        store = FaultyStore(self.nodes[self.at].catalog().store)
        self.box = self.wake(store=store)
        for _ in range(9):
            store.fail("put", "meta.json", after=False)
        with pytest.raises(BackupCreateError):
            backup(self.box, directory)
        store.faults.clear()

    def tidy_up(self) -> None:
        """Deletes the backups that no recovery needs, and then the layers that no backup needs."""
        catalog = self.nodes[self.at].catalog()
        state = self.nodes[self.at].state(self.name)
        needed = {row.backup_id for row in state.checkpoints} | {row.backup_id for row in state.restored}
        for handle, _ in self.made:
            if handle.id not in needed:
                assert catalog.delete("default", handle.id)
        self.made = [(handle, content) for handle, content in self.made if handle.id in needed]
        collect(catalog, now=datetime.now(UTC), grace_s=0)

    def save(self, directory: str) -> None:
        self.write(f"{directory}/file")
        self.backup(directory)

    def backup(self, directory: str) -> None:
        self._prepare(directory)
        content = within(self.model.now, directory)
        self.made.append((backup(self.box, directory), content))
        self.model.keep(directory, content)

    def restore_copy(self, number: int) -> None:
        self.restore(number, RestoreMode.COPY)

    def restore(self, number: int, mode: RestoreMode = RestoreMode.OVERLAY) -> None:
        if self.made:
            handle, content = self.made[number % len(self.made)]
            restore(self.box, handle, mode=mode)
            self.model.now = without(self.model.now, handle.dir) | content
            self.model.keep(handle.dir, content)

    def sleep(self) -> None:
        self.box.sleep()
        self.box = self.wake()

    def sleep_nowhere(self) -> None:
        self.box.sleep(self.box.back_up_for_sleep())
        assert not self.nodes[self.at].home(self.name).exists()
        self.model.safe = {
            top: kept for top in ("/workspace", "/app", "/home", "/tmp") if (kept := within(self.model.now, top))
        }
        self.at = self.other
        self.box = self.wake()

    def lose(self) -> None:
        lost, self.at = self.at, self.other
        self.model.lose()
        self.box = self.wake(lost=lost)

    def crash(self) -> None:
        """Simulates a crash as far as one process can: it writes nothing to the bucket."""
        self.box = self.wake()

    @property
    def other(self) -> str:
        return NODES[1 - NODES.index(self.at)]

    def check(self) -> None:
        found = sh(self.box, f"for f in {' '.join(FILES)}; do [ -e $f ] && echo $f $(cat $f); done; true")
        assert dict(line.split() for line in found.splitlines()) == self.model.now
        assert sh(self.box, "ls /tmp /var/tmp") == "/tmp:\n\n/var/tmp:\n"

    def end(self) -> None:
        for actor in self.actors.values():
            if actor.is_awake and actor is not self.box:
                actor.close()
        self.box.destroy()
        catalog = self.nodes["a"].catalog()
        own = {handle.id for handle, _ in self.made}
        assert {row.id for row in catalog.page("default", self.name).records} == own
        assert catalog.sandboxes.find_state("default", self.name) is None


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, bucket: BucketConfig, best_driver: Driver
) -> Iterator[dict[str, Node]]:
    folder = tmp_path_factory.mktemp("history")
    with nothing_leaks(folder):
        with ExitStack() as stack:
            made = {
                name: stack.enter_context(Node(folder / name, bucket, best_driver, identity=name)) for name in NODES
            }
            for node in made.values():
                node.adjust(backup=BackupLimits(incremental_min_bytes=0))
            yield made
        mounting.sweep(folder)


@pytest.mark.timeout(400)
@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=6, max_size=14))
def test_a_sandboxs_content_always_matches_its_model(
    nodes: dict[str, Node], steps: list[tuple[str, str | int | None]]
) -> None:
    history = History(nodes)
    try:
        for name, argument in steps:
            before = copy.deepcopy(history.model)
            act: Callable[..., None] = getattr(history, name.replace(" ", "_"))
            act(argument) if argument is not None else act()
            note(f"{name} {argument}: {before} -> {history.model}")
            history.check()
    finally:
        history.end()
