"""Sandboxes on this machine as in an actor, without Ray and HTTP."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pydantic import SecretStr

from actors.config import NodeConfig, SandboxConfig
from actors.errors import HoldfastError
from actors.metrics import UNMETERED, Meter
from actors.models import (
    BackupOptions,
    DirectoryBackup,
    ExecRequest,
    ExecResult,
    Exit,
    Output,
    RestoreMode,
    RestoreOptions,
)
from actors.node import mountinfo
from actors.node.cgroup import Cgroup
from actors.node.drivers import Driver
from actors.node.hierarchies import Hierarchies
from actors.node.mountinfo import Mount
from actors.node_layout import NodeLayout
from actors.sandbox.facade import LocalSandbox
from storage.catalog import BackupCatalog
from storage.config import BucketConfig
from storage.metadata import SandboxState
from storage.s3 import S3ObjectStore
from storage.store import ObjectStore
from tests.support.mount_leaks import processes_about, wait_until
from tests.support.s3 import FAST

UID = 61_184
SIGNING_KEY = SecretStr("a signing key for tests only")
T = TypeVar("T")


class Node:
    """A node: a data folder, a driver (or none), a bucket. Closes the sandboxes that it made, and removes its group.

    By default all nodes have the same identity, since the tests of a session share a bucket and use the same names in
    it. `session` distinguishes them from those of other sessions, which share the machine's control groups.
    """

    def __init__(
        self,
        data_dir: Path,
        bucket: BucketConfig,
        driver: Driver | None,
        *,
        identity: str = "node",
        session: int | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.offered = driver
        self.bucket = bucket
        self.config = SandboxConfig(
            node=NodeConfig(data_dir=self.data_dir, driver=driver.value if driver else "none"),
            transfer=FAST,
            bucket=bucket,
            signing_key=SIGNING_KEY,
        )
        self._made: list[LocalSandbox] = []
        self.layout.root.mkdir(parents=True, exist_ok=True)
        self.identity, self.session = identity, session or os.getpid()
        (self.layout.root / "id").write_text(self._unique(identity))

    def _unique(self, identity: str) -> str:
        return f"{identity}-{self.session}"

    @property
    def driver(self) -> Driver:
        """The node's driver, in a test that needs one."""
        assert self.offered is not None
        return self.offered

    @property
    def layout(self) -> NodeLayout:
        """The node's paths."""
        return NodeLayout(self.config.node)

    def home(self, sandbox_id: str, tenant: str = "default") -> Path:
        """A sandbox's folder."""
        return self.layout.box(tenant, sandbox_id)

    def tree(self, sandbox: LocalSandbox) -> Path:
        """The root of a sandbox's tree on the node."""
        return self.home(sandbox.id, sandbox.tenant) / "root"

    def owner(self, sandbox: LocalSandbox) -> int:
        """The user who owns an awake sandbox's files where the node sees them: its own, or that of all sandboxes."""
        return (self.tree(sandbox) / "workspace").stat().st_uid

    def mounts(self) -> list[Mount]:
        """The mounts below the data folder, except the views of awake sandboxes' folders."""
        found = mountinfo.mounts_under(self.data_dir)
        return [mount for mount in found if mount.fs_type == "overlay" or mount.point.name != "root"]

    def catalog(self, store: ObjectStore | None = None) -> BackupCatalog:
        """The bucket's catalog, over `store` if given."""
        return BackupCatalog(store or S3ObjectStore(self.bucket, transfer=FAST), SIGNING_KEY)

    def adjust(self, **changes: Any) -> None:
        """Changes the settings of sandboxes made from now on."""
        self.config = self.config.model_copy(update=changes)

    def sandbox(
        self,
        sandbox_id: str = "box",
        *,
        tenant: str = "default",
        catalog: BackupCatalog | None = None,
        awake: bool = True,
        meter: Meter = UNMETERED,
        lost: Iterable[str] = (),
    ) -> LocalSandbox:
        """A sandbox over its folder, which may have files of an earlier one. `lost` names the nodes that are lost."""
        gone = frozenset(map(self._unique, lost))
        sandbox = LocalSandbox(
            tenant,
            sandbox_id,
            self.config,
            driver=self.offered,
            catalog=catalog or self.catalog(),
            cluster_node=f"cluster-{self.layout.identity()}",
            is_lost=lambda identity, _: identity in gone,
            meter=meter,
        )
        self._made.append(sandbox)
        if awake:
            sandbox.wake()
        return sandbox

    def state(self, sandbox_id: str) -> SandboxState:
        """The sandbox's state document in the bucket, which must exist."""
        found = self.catalog().sandboxes.find_state("default", sandbox_id)
        assert found is not None
        return found.state

    def keys(self) -> set[str]:
        """All keys in the bucket."""
        store, found, after = S3ObjectStore(self.bucket, transfer=FAST), set[str](), None
        while True:
            page = store.list("", after=after)
            found |= {row.key for row in page.objects}
            after = page.after
            if after is None:
                return found

    def processes(self) -> dict[int, str]:
        """All processes that use this node's data folder or control groups, whoever started them."""
        return processes_about(str(self.data_dir), self.layout.cgroup)

    def __enter__(self) -> Self:
        return self

    def alone_in_the_bucket(self) -> Self:
        """Deletes the state documents of earlier nodes' sandboxes, which would be recovered here."""
        for key in self.keys():
            if key.endswith("/state.json"):
                self.catalog().store.delete(key)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failures = []
        for sandbox in reversed(self._made):  # a superseded one has the same root
            try:
                if sandbox.is_awake:
                    sandbox.close()
            except Exception as e:
                failures.append(e)
        Cgroup.remove_tree(self.layout.cgroup)
        assert not (Hierarchies.find().v2 / self.layout.cgroup).exists()
        if failures and error is None:
            raise failures[0]


def identity(data_dir: Path) -> str:
    """The identity of the node with this data folder."""
    return NodeLayout(NodeConfig(data_dir=data_dir)).identity()


def service_cgroup(data_dir: Path) -> str:
    """The control group of all sandboxes of a data folder, below the group in which the service was started."""
    return NodeLayout(NodeConfig(data_dir=data_dir)).cgroup


def run(
    sandbox: LocalSandbox, *argv: str, cwd: str = "/workspace", timeout_ms: int = 60_000, stdin: bytes | None = None
) -> ExecResult:
    """Runs a command to its end."""
    given = None if stdin is None else base64.b64encode(stdin).decode()
    request = ExecRequest(argv=list(argv), cwd=cwd, timeout_ms=timeout_ms, stdin_base64=given)
    out: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    code = -1
    for event in sandbox.exec(uuid.uuid4().hex, request):
        if isinstance(event, Exit):
            code = event.exit_code
        elif isinstance(event, Output):
            out[event.stream] += event.data
    return ExecResult(exit_code=code, stdout=bytes(out["stdout"]), stderr=bytes(out["stderr"]))


def sh(sandbox: LocalSandbox, script: str, *, cwd: str = "/workspace") -> str:
    """Runs a shell script that must succeed; returns its standard output."""
    ended = run(sandbox, "sh", "-c", script, cwd=cwd)
    assert ended.exit_code == 0, ended
    return ended.stdout.decode("utf-8", "surrogateescape")


def write(sandbox: LocalSandbox, path: str, data: bytes | str) -> None:
    """Writes a file as a client does."""
    transfer = sandbox.open_file(path, None)
    sandbox.send(transfer, data.encode() if isinstance(data, str) else data)
    sandbox.commit(transfer)


def read(sandbox: LocalSandbox, path: str) -> bytes:
    """Reads a file as a client does."""
    return b"".join(sandbox.read_file(uuid.uuid4().hex, path))


def hydrate(sandbox: LocalSandbox, tar: bytes) -> None:
    """Unpacks a tar archive as a client does."""
    transfer = sandbox.open_hydrate()
    for start in range(0, len(tar), 65_536):
        sandbox.send(transfer, tar[start : start + 65_536])
    sandbox.commit(transfer)


def backup(sandbox: LocalSandbox, directory: str = "/workspace", **options: Any) -> DirectoryBackup:
    """Creates a backup."""
    return sandbox.create_backup(BackupOptions(dir=directory, **options))


def restore(
    sandbox: LocalSandbox,
    handle: DirectoryBackup,
    directory: str | None = None,
    mode: RestoreMode | str = RestoreMode.OVERLAY,
) -> None:
    """Restores a backup to its own directory, or to `directory`."""
    sandbox.restore_backup(RestoreOptions(id=handle.id, dir=directory or handle.dir, mode=RestoreMode(mode)))


class Background(Generic[T]):
    """A call in its own thread."""

    def __init__(self, act: Callable[[], T]) -> None:
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._act = act
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._act())
        except BaseException as e:
            self._error = e

    @property
    def ended(self) -> bool:
        """True if the call has returned or raised."""
        return not self._thread.is_alive()

    def result(self, timeout_s: float = 60.0) -> T:
        """Waits for the call; returns its result or raises its error."""
        self._thread.join(timeout_s)
        assert self.ended, "the call has not ended in time"
        if self._error is not None:
            raise self._error
        return self._result[0]

    def error(self, timeout_s: float = 60.0) -> BaseException | None:
        """Waits for the call; returns its error, if it raised one."""
        self._thread.join(timeout_s)
        assert self.ended, "the call has not ended in time"
        return self._error


@contextmanager
def command(sandbox: LocalSandbox, script: str) -> Iterator[Background[ExecResult]]:
    """A shell script that runs in the background. Waits for its first output, and stops it at the end of the block."""
    with running(sandbox, ExecRequest(argv=["sh", "-c", script])) as (background, _):
        yield background


@contextmanager
def running(sandbox: LocalSandbox, request: ExecRequest) -> Iterator[tuple[Background[ExecResult], str]]:
    """A command in the background, and its id. Waits for its first event, and stops it at the end of the block."""
    name, started = uuid.uuid4().hex, threading.Event()

    def act() -> ExecResult:
        out = bytearray()
        try:
            for event in sandbox.exec(name, request):
                if isinstance(event, Exit):
                    return ExecResult(exit_code=event.exit_code, stdout=bytes(out), stderr=b"")
                if isinstance(event, Output):
                    out += event.data
                started.set()
        finally:
            started.set()
        raise AssertionError("a command without an end")

    background = Background(act)
    assert started.wait(60), "the command says nothing"
    try:
        yield background, name
    finally:
        sandbox.stop(name)
        assert wait_until(lambda: background.ended), "the command does not end"


@dataclasses.dataclass(frozen=True)
class Crashed:
    """The exit status and output of a process that was to kill itself."""

    status: int
    stdout: str
    stderr: str


def crash(program: str, *args: str, timeout_s: float = 120.0, before: Sequence[str] = ()) -> Crashed:
    """Runs a module of `tests.support.programs` in its own process.

    `before` is a command that executes the program given after it.
    """
    root = str(Path(__file__).parents[2])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": root, "LC_ALL": "C.UTF-8"}
    ended = subprocess.run(
        [*before, sys.executable, "-m", program, *args],
        capture_output=True,
        timeout=timeout_s,
        env=environment,
        cwd=root,
    )
    return Crashed(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def described(node: Node) -> str:
    """A description from which another process can make the same node."""
    return json.dumps(
        {
            "data_dir": str(node.data_dir),
            "identity": node.identity,
            "session": node.session,
            "driver": node.driver.value,
            "bucket": node.bucket.bucket,
            "endpoint_url": node.bucket.endpoint_url,
            "region": node.bucket.region,
            "access": node.bucket.access_key_id.get_secret_value(),
            "secret": node.bucket.secret_access_key.get_secret_value(),
        }
    )


def from_description(text: str) -> Node:
    """Makes the node that `described` describes."""
    told = json.loads(text)
    config = BucketConfig(
        bucket=told["bucket"],
        endpoint_url=told["endpoint_url"],
        region=told["region"],
        access_key_id=SecretStr(told["access"]),
        secret_access_key=SecretStr(told["secret"]),
    )
    return Node(
        Path(told["data_dir"]), config, Driver(told["driver"]), identity=told["identity"], session=told["session"]
    )


def code_of(error: BaseException | None) -> str:
    """The code of a HoldfastError."""
    assert isinstance(error, HoldfastError), repr(error)
    return error.code
