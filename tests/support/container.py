"""Containers like those of Docker and Kubernetes, made without either, for tests of the service in a container.

A container has its own namespaces, a root file system that is an overlay over a tree, a /dev with few devices, and the
given privileges. It is cut off from every network; only `client` connects to it, by entering its network namespace.
Not simulated: AppArmor, the device control group, Docker and Kubernetes themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpcore
import httpx

from actors.node import seccomp
from actors.node.hierarchies import Hierarchies
from tests.support.control_groups import is_removed
from tests.support.mount_leaks import wait_until
from tests.support.service import PROGRAMS, PROJECT, START_S, STOP_S

DOCKER = ("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
          "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE")  # fmt: skip
"""Docker's default capabilities. Source: moby's daemon/pkg/oci/caps/defaults.go."""
FEWEST = ("SYS_ADMIN", "NET_ADMIN", "CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID", "KILL")
"""The capabilities that the service needs."""
DATA = "/var/lib/holdfast"
HOME = "/home/service"
PORT = 8484
KEY = "key-of-the-container-000"
_INIT = Path(__file__).with_name("container_init.py")
_FIRST_ID, _IDS = 200_000, 65_536
_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Privileges:
    """The privileges of a container. The defaults are those of `docker run`."""

    capabilities: tuple[str, ...] | None = DOCKER
    """None means all."""
    devices: tuple[str, ...] = ()
    host_devices: bool = False
    masked: bool = True
    cgroup_writable: bool = False
    controllers: bool = True
    """True if it gets the controllers that this machine has in cgroup v1."""
    volume: bool = True
    """True if the data folder is a volume; False if it is in the container's own overlay."""
    user_namespace: bool = False
    seccomp: bool = False
    uid: int = 0

    def words(self) -> list[str]:
        """The head of a command line that drops all other privileges."""
        words = ["setpriv"]
        if self.capabilities is not None:
            kept = ",".join(f"+{name.lower()}" for name in self.capabilities)
            words += [f"--bounding-set=-all{',' if kept else ''}{kept}", "--inh-caps=-all"]
        if self.uid:
            words += [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--no-new-privs"]
        return [*words, "--"]


def loops(count: int = 64) -> tuple[str, ...]:
    """Names of the loop devices."""
    return ("loop-control", *(f"loop{number}" for number in range(count) if Path(f"/dev/loop{number}").exists()))


@dataclass(slots=True)
class Container:
    """A running container."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    stdout: Path
    stderr: Path
    cgroup: Path
    _backend: list[httpcore.NetworkBackend] = field(default_factory=list)

    @property
    def first(self) -> int:
        """The pid of the container's process 1, seen from outside."""
        (pid,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(pid)

    def client(self) -> httpx.Client:
        """An HTTP client that connects from within the container's network namespace."""
        transport = httpx.HTTPTransport()
        transport._pool = httpcore.ConnectionPool(network_backend=_Within(Path(f"/proc/{self.first}/ns/net")))
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=120, transport=transport)

    def stop(self) -> int:
        """Stops the container like `docker stop`; returns its exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


class _Within(httpcore.SyncBackend):
    """Connects in another network namespace. Only a helper thread enters it; the connection stays there."""

    def __init__(self, namespace: Path) -> None:
        self._namespace = namespace

    def connect_tcp(self, *args: object, **kwargs: object) -> httpcore.NetworkStream:
        made: list[httpcore.NetworkStream | BaseException] = []

        def connect() -> None:
            try:
                with self._namespace.open() as namespace:
                    if _libc.setns(namespace.fileno(), _NEWNET) != 0:
                        raise httpcore.ConnectError("the container's network is gone")
                made.append(httpcore.SyncBackend.connect_tcp(self, *args, **kwargs))  # type: ignore[arg-type]
            except OSError as e:
                made.append(httpcore.ConnectError(str(e)))
            except Exception as e:
                made.append(e)

        thread = threading.Thread(target=connect)
        thread.start()
        thread.join()
        if isinstance(made[0], BaseException):
            raise made[0]
        return made[0]


@contextmanager
def running(
    folder: Path,
    privileges: Privileges,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    tree: Path = Path("/"),
    as_init: bool = False,
    folder_of_work: str = "/",
) -> Iterator[Container]:
    """A container that runs `argv` within the block. Afterwards nothing of it is left.

    Args:
        folder: for the container's volume and output, on a file system of this machine.
        tree: the root file system under the container's own overlay; by default this machine's.
        as_init: the command itself is process 1.
        folder_of_work: the command's working directory.
    """
    data_dir = folder / "data"
    data_dir.mkdir(parents=True, exist_ok=True)
    owner = _FIRST_ID if privileges.user_namespace else 0
    os.chown(data_dir, privileges.uid, privileges.uid)
    shown: list[tuple[str, str]] = []
    if tree == Path("/"):
        shown.append((str(PROJECT), str(PROJECT)))
    if privileges.volume:
        shown.append((str(data_dir), DATA))
    with _own_groups(owner, controllers=privileges.controllers) as groups, _scratch() as scratch:
        wanted = {
            "scratch": str(scratch),
            "tree": str(tree),
            "binds": shown,
            "folders": [HOME, *(() if privileges.volume else (DATA,))],
            "devices": privileges.devices,
            "host_devices": privileges.host_devices,
            "privileged": privileges.host_devices,
            "masked": privileges.masked,
            "cgroups": [str(group) for group in (groups.v2, *groups.v1.values())],
            "controllers": list(groups.v1),
            "cgroup_writable": privileges.cgroup_writable,
            "first_id": owner,
            "ids": _IDS,
            "privileges": privileges.words(),
            "seccomp": seccomp.program().hex() if privileges.seccomp else "",
            "as_init": as_init,
            "folder_of_work": folder_of_work,
            "argv": list(argv),
            "environment": {
                "PATH": f"{PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": HOME,
                "LANG": "C.UTF-8",
                **(environment or {}),
            },
        }
        stdout, stderr = folder / "stdout", folder / "stderr"
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                [
                    "unshare",
                    "--mount",
                    "--propagation",
                    "private",
                    "--",
                    sys.executable,
                    "-I",
                    _INIT,
                    json.dumps(wanted),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        container = Container(process, data_dir, stdout, stderr, groups.v2)
        try:
            yield container
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
            process.wait()


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hf-container-"))
    try:
        yield folder
    finally:
        folder.rmdir()


@contextmanager
def _own_groups(owner: int, *, controllers: bool) -> Iterator[Hierarchies]:
    """The container's own control groups, as runtimes make them. Processes left in them are killed at the end.

    Each is below this process's group in its hierarchy: one of cgroup v2 and, on a hybrid machine, one of cgroup v1 for
    each controller.
    """
    found = Hierarchies.find()
    name = Path(tempfile.mktemp(prefix="hf-container-")).name
    groups = Hierarchies(found.v2 / name, {key: group / name for key, group in found.v1.items() if controllers})
    for group in (groups.v2, *groups.v1.values()):
        group.mkdir()
        for path in (group, *(group / file for file in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"))):
            if path.exists():
                os.chown(path, owner, owner)
    try:
        yield groups
    finally:
        (groups.v2 / "cgroup.kill").write_text("1")
        events = groups.v2 / "cgroup.events"
        assert wait_until(lambda: "populated 0" in events.read_text()), "processes of the container do not end"
        for top in (groups.v2, *groups.v1.values()):
            for folder, _, _ in os.walk(top, topdown=False):
                assert wait_until(lambda folder=folder: is_removed(Path(folder))), folder  # type: ignore[misc]


def serving(
    folder: Path, privileges: Privileges, *, environment: Mapping[str, str] | None = None
) -> contextlib.AbstractContextManager[Container]:
    """A container that runs this project's `holdfast serve`."""
    argv = [str(PROGRAMS / "holdfast"), "serve", "--data-dir", DATA, "--port", str(PORT)]
    return running(folder, privileges, argv, environment={"SANDBOX_API_KEY": KEY, **(environment or {})})


def doctor(folder: Path, privileges: Privileges) -> tuple[int, str]:
    """The exit status and output of `holdfast doctor` in such a container."""
    argv = [str(PROGRAMS / "holdfast"), "doctor", "--data-dir", DATA, "--json"]
    with running(folder, privileges, argv) as container:
        status = container.process.wait(START_S)
        return status, container.stdout.read_text() or container.stderr.read_text()
