"""A service started as a user starts it: the installed command, its own home and data folder, a clean environment.

The service's processes are found from outside: by parent process, by the HOME variable that they inherit, and by the
service's control group.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

from actors.node import mountinfo
from storage.config import BucketConfig
from storage.s3 import S3ObjectStore
from tests.support.mount_leaks import loop_devices, targets, wait_until
from tests.support.sandboxes import identity, service_cgroup

T = TypeVar("T")
PROJECT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
HOLDFAST = PROGRAMS / "holdfast"
START_S = 180.0
STOP_S = 120.0
_LISTEN = "0A"
_NO_IDENTITY = "no-identity"
"""Stands for the identity of a node that never got one. No group and no folder has this name."""
LAST_WORDS = "stop with Ctrl-C"
COMMAND_S = 180.0
"""Time limit for a command of `holdfast`, which takes about two seconds on an idle machine."""


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a fresh login, with the virtual environment's programs first in PATH."""
    return {
        "PATH": f"{PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        **(extra or {}),
    }


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return ""


def _address(text: str, width: int) -> tuple[str, int]:
    """Parses an address of /proc/net/tcp: the address as words in the host's byte order, and the port."""
    address, _, port = text.partition(":")
    raw = bytes.fromhex(address)
    words = [raw[at : at + 4][::-1] for at in range(0, width, 4)] if sys.byteorder == "little" else [raw]
    return str(ipaddress.ip_address(b"".join(words))), int(port, 16)


@dataclass(slots=True)
class Service:
    """A running `holdfast serve`."""

    process: subprocess.Popen[bytes]
    home: Path
    data_dir: Path
    url: str
    api_key: str
    stdout: Path
    stderr: Path
    error_bodies: list[str] = field(default_factory=list)
    """Bodies and headers of all answers with status 400 or above that clients made by `client` got."""
    known_pids: dict[int, str] = field(default_factory=dict)
    """All processes that were ever seen to belong to the service, and their start times."""
    _homes: dict[tuple[int, str], bool] = field(default_factory=dict)

    @property
    def s3(self) -> Path:
        """The embedded store's folder: for damage to a file that nothing writes any more."""
        return self.data_dir / "s3" / "holdfast"

    @property
    def has_identity(self) -> bool:
        """True if the service has already given its node the identity after which groups and folders are named."""
        return any((self.data_dir / name).exists() for name in ("node/id", "node.id"))

    @property
    def ray_folder(self) -> Path:
        """The folder of Ray's sockets and logs."""
        found = identity(self.data_dir) if self.has_identity else _NO_IDENTITY
        return Path(tempfile.gettempdir()) / f"holdfast-{hashlib.sha256(found.encode()).hexdigest()[:12]}"

    @property
    def cgroup(self) -> Path:
        """The control group of all sandboxes, under the mount of cgroup v2."""
        from actors.node.hierarchies import Hierarchies

        return Hierarchies.find().v2 / (service_cgroup(self.data_dir) if self.has_identity else _NO_IDENTITY)

    @property
    def jobs_url(self) -> str:
        """The URL for `ray job submit`, from the banner."""
        (word,) = {word for word in self.stdout.read_text().split() if word.startswith("RAY_ADDRESS=")}
        return word.removeprefix("RAY_ADDRESS=")

    @property
    def client_env(self) -> dict[str, str]:
        """Environment variables that drivers of the cluster need."""
        lines = (self.data_dir / "client.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def node_path(self, box: str, path: str, *, tenant: str = "default") -> Path:
        """The path on the node of a path in a sandbox."""
        return self.data_dir / "node" / "boxes" / tenant / box / "root" / path.lstrip("/")

    def client(self, key: str | None = None) -> httpx.Client:
        """A client with the service's key or with `key`; an empty one means without a key."""
        wanted = self.api_key if key is None else key
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {wanted}"} if wanted else {},
            timeout=120,
            event_hooks={"response": [self._collect]},
        )

    def _collect(self, response: httpx.Response) -> None:
        if response.status_code >= 400:
            self.error_bodies.append(response.read().decode("utf-8", "replace") + repr(response.headers))

    def store(self) -> S3ObjectStore:
        """The embedded store's bucket, opened with the store's own keys.

        Tests read objects through it and not from its folder, where rclone replaces a file in more than one step.
        """
        (port,) = eventually(lambda: {port for pid, port in self.listening() if "rclone" in comm_of(pid)})
        secrets = json.loads((self.data_dir / "secrets" / "secrets.json").read_text())
        return S3ObjectStore(
            BucketConfig(
                bucket="holdfast",
                endpoint_url=f"http://127.0.0.1:{port[1]}",
                region="us-east-1",
                access_key_id=secrets["s3_access_key"],
                secret_access_key=secrets["s3_secret_key"],
            )
        )

    def listening(self) -> list[tuple[int, tuple[str, int]]]:
        """(process, (address, port)) of every TCP socket on which a process of the service listens."""
        sockets: dict[str, tuple[str, int]] = {}
        for table, width in (("tcp", 4), ("tcp6", 16)):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    sockets[f"socket:[{fields[9]}]"] = _address(fields[1], width)
        found = []
        for pid in self.pids():
            for target in targets(Path(f"/proc/{pid}/fd")):
                address = sockets.get(target)
                if address is not None:
                    found.append((pid, address))
        return found

    def pids(self) -> dict[int, str]:
        """Current processes of the service, and their start times."""
        parents: dict[int, int] = {}
        found: dict[int, str] = {}
        starts: dict[int, str] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                pid = int(folder.name)
                if fields[0] == "Z":
                    continue
                parents[pid], starts[pid] = int(fields[1]), fields[19]
                if self._has_our_home(folder, pid, starts[pid]):
                    found[pid] = starts[pid]
        changed = True
        found |= {self.process.pid: starts[self.process.pid]} if self.process.pid in starts else {}
        while changed:
            more = {pid: starts[pid] for pid, parent in parents.items() if parent in found and pid not in found}
            found |= more
            changed = bool(more)
        found |= {pid: starts[pid] for pid in self._in_cgroup() if pid in starts}
        found.pop(os.getpid(), None)
        self.known_pids |= found
        return found

    def _has_our_home(self, folder: Path, pid: int, started: str) -> bool:
        known = self._homes.get((pid, started))
        if known is None:
            environment = (folder / "environ").read_bytes()
            known = f"HOME={self.home}\0".encode() in environment + b"\0"
            if environment:  # it is empty for an instant while a program is started
                self._homes[pid, started] = known
        return known

    def _in_cgroup(self) -> list[int]:
        pids: list[int] = []
        for folder, _, _ in os.walk(self.cgroup):  # which ignores groups that disappear meanwhile
            with suppress(OSError):
                pids += map(int, Path(folder, "cgroup.procs").read_text().split())
        return pids

    def left_behind(self) -> list[object]:
        """Leftovers of a stopped service: processes, mounts, loop devices, control groups."""
        alive = [(pid, start) for pid, start in self.pids().items()]
        for pid, start in self.known_pids.items():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if fields[19] == start and fields[0] != "Z" and (pid, start) not in alive:
                    alive.append((pid, start))
        groups = [self.cgroup] if self.cgroup.exists() else []
        named = [(pid, _command_line(pid)) for pid, _ in alive]
        return [*named, *mountinfo.mounts_under(self.data_dir), *loop_devices(self.data_dir), *groups]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal to `serve`; returns its exit status."""
        self.pids()
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_S)


@dataclass(frozen=True, slots=True)
class Refused:
    """A `serve` that exited instead of listening."""

    status: int
    stdout: str
    stderr: str
    service: Service
    """The service as it would have been, for finding leftovers."""


def start(
    home: Path,
    data_dir: Path,
    *,
    env: Mapping[str, str] | None = None,
    key: str | None = None,
    before: Sequence[str] = (),
    seen_at: Path | None = None,
) -> Service:
    """Starts a service; returns once `/ready` answers 200. `key` defaults to the one that the service made.

    Args:
        before: a command that executes the command given after it.
        seen_at: the path of the data folder in the service's mount namespace, if it differs.
    """
    home.mkdir(exist_ok=True)
    process, stdout, stderr = _launch(home, seen_at or data_dir, env=env, port=0, before=before)
    try:

        def is_up() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"serve ended with {process.returncode}: {stderr.read_text()}")
            return LAST_WORDS in stdout.read_text()

        assert wait_until(is_up, timeout_s=START_S), stderr.read_text()
        url = stdout.read_text().split("listens on ", 1)[1].split(" ", 1)[0]
        api_key = key if key is not None else (data_dir / "secrets" / "api_key").read_text()
        service = Service(process, home, data_dir, url, api_key, stdout, stderr)
        assert wait_until(lambda: is_ready(service), timeout_s=START_S), stderr.read_text()
        service.pids()
    except BaseException:
        process.terminate()
        process.wait(STOP_S)
        raise
    return service


def is_ready(service: Service) -> bool:
    """True if `/ready` answers 200."""
    with suppress(httpx.TransportError):
        headers = {"Authorization": f"Bearer {service.api_key}"}
        return httpx.get(f"{service.url}/ready", headers=headers, timeout=20).status_code == 200
    return False


@contextmanager
def running(
    home: Path,
    data_dir: Path,
    *,
    env: Mapping[str, str] | None = None,
    key: str | None = None,
    before: Sequence[str] = (),
    seen_at: Path | None = None,
) -> Iterator[Service]:
    """A service within the block, started as by `start`. Afterwards nothing of it may be left."""
    service = start(home, data_dir, env=env, key=key, before=before, seen_at=seen_at)
    try:
        yield service
    finally:
        service.stop()
    nothing_left(service)
    shutil.rmtree(service.ray_folder, ignore_errors=True)


def refused(
    home: Path,
    data_dir: Path,
    *,
    port: int = 0,
    env: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
) -> Refused:
    """Runs a `serve` that is expected to exit at once. `before` is a command that executes the one given after it."""
    home.mkdir(exist_ok=True)
    process, stdout, stderr = _launch(home, data_dir, env=env, port=port, before=before)
    try:
        status = process.wait(START_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(STOP_S)
        raise
    service = Service(process, home, data_dir, "", "", stdout, stderr)
    return Refused(status, stdout.read_text(), stderr.read_text(), service)


def _launch(
    home: Path, data_dir: Path, *, env: Mapping[str, str] | None, port: int, before: Sequence[str] = ()
) -> tuple[subprocess.Popen[bytes], Path, Path]:
    number = len(list(home.glob("*.out")))
    stdout, stderr = home / f"serve-{number}.out", home / f"serve-{number}.err"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [*before, HOLDFAST, "serve", "--data-dir", data_dir, "--port", str(port)],
            cwd=home,
            env=clean_environment(home, env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
    return process, stdout, stderr


class CommandLines:
    """Samples the arguments and environments of all the service's processes, as any user of the node could."""

    def __init__(self, service: Service, *, every_s: float = 0.1) -> None:
        self.seen: set[bytes] = set()
        self.environments: dict[int, bytes] = {}
        self.samples = 0
        self.service = service
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="command-lines", daemon=True)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(self._every_s):
            for pid in self.service.pids():
                with suppress(OSError):
                    self.seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                    self.environments.setdefault(pid, Path(f"/proc/{pid}/environ").read_bytes())
            self.samples += 1


def workers(service: Service, title: bytes) -> set[int]:
    """Current processes of Ray with this title."""
    found = set()
    for pid in service.pids():
        with suppress(OSError):  # the process has ended meanwhile
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title):
                found.add(pid)
    return found


def secrets_of(service: Service) -> dict[str, str]:
    """All secrets of the service by name, and the parameters that every presigned URL has."""
    kept: dict[str, str | bool] = json.loads((service.data_dir / "secrets" / "secrets.json").read_text())
    secrets = {name: value for name, value in kept.items() if isinstance(value, str)}
    marks = {"a presigned URL": "X-Amz-Signature", "a presigned URL's credential": "X-Amz-Credential"}
    return {**secrets, "the service's key": service.api_key, **marks}


def nothing_left(service: Service, *, timeout_s: float = 60.0) -> None:
    """Fails with a list of leftovers unless nothing of the stopped service is left within the time limit."""
    assert wait_until(lambda: not service.left_behind(), timeout_s=timeout_s), service.left_behind()


def eventually(look: Callable[[], T], *, timeout_s: float = 120.0) -> T:
    """The first true result of `look`. Fails with the last one if there is none in time."""
    seen: list[T] = []

    def has_come() -> bool:
        seen[:] = [look()]
        return bool(seen[0])

    assert wait_until(has_come, timeout_s=timeout_s), f"not within {timeout_s} s, but {seen[0]!r}"
    return seen[0]


def comm_of(pid: int) -> str:
    """The name of a process; empty if it has ended."""
    return read_or_empty(Path(f"/proc/{pid}/comm")).decode(errors="replace").strip()


def finished_lines(log: Path) -> list[str]:
    """The lines of a log that is still written to, without the beginning of a line at its end."""
    return log.read_text(errors="replace").rpartition("\n")[0].splitlines()


def files_below(folder: Path) -> list[Path]:
    """The regular files below a folder in which files and folders may come and go."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return [path for path in paths if path.is_file()]


def read_or_empty(path: Path) -> bytes:
    """The content of a file; empty if it cannot be read, because its process has ended or it was removed."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
