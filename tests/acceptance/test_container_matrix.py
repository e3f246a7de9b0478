"""The service with each set of privileges that a container may have, compared with what `doctor` says there.

Each row either works completely, with copies where no mount driver is offered; or `serve` refuses to start, with the
cause and the lines to change in `docker run` and in a pod's manifest. A missing privilege never makes a backup look
damaged, and never makes a sandbox wake empty.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from actors.models import RestoreMode
from actors.node.hierarchies import Hierarchies
from tests.acceptance.http_box import HttpBox
from tests.support.container import DOCKER, FEWEST, Container, Privileges, doctor, loops, serving
from tests.support.service import LAST_WORDS, START_S, eventually

pytestmark = pytest.mark.timeout(600)

ADMIN = (*DOCKER, "SYS_ADMIN")
NET_ADMIN = (*ADMIN, "NET_ADMIN")
FUSE = ("fuse",)


@dataclass(frozen=True, slots=True)
class Works:
    """A row that starts. `drivers` are those that its doctor finds; without any, restores are copies."""

    drivers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refuses:
    """A row that does not start: the findings that fail in its doctor, and words from the lines to change."""

    failing: tuple[str, ...]
    words: tuple[str, ...]


_ADD_ADMIN = ("CAP_SYS_ADMIN", "--cap-add SYS_ADMIN", "capabilities.add: [SYS_ADMIN]")
_WRITABLE = ("remount,bind,rw /sys/fs/cgroup", "writable-cgroups=true")
_ON_A_VOLUME = ("mixed", "rootless")

ROWS: dict[str, tuple[Privileges, Works | Refuses]] = {
    "everything": (
        Privileges(None, host_devices=True, masked=False, cgroup_writable=True),
        Works(("kernel", *_ON_A_VOLUME)),
    ),
    "everything with a /dev of few devices": (
        Privileges(None, devices=(*FUSE, *loops()), masked=False, cgroup_writable=True),
        Works(("kernel", *_ON_A_VOLUME)),
    ),
    "SYS_ADMIN with a read-only cgroup": (
        Privileges(ADMIN, devices=FUSE),
        Refuses(("cgroup",), _WRITABLE),
    ),
    "SYS_ADMIN and NET_ADMIN behind Docker's masks": (
        Privileges(NET_ADMIN, devices=FUSE, cgroup_writable=True),
        Works(_ON_A_VOLUME),
    ),
    "SYS_ADMIN without NET_ADMIN": (
        Privileges(ADMIN, devices=FUSE, masked=False, cgroup_writable=True),
        Works(_ON_A_VOLUME),
    ),
    "SYS_ADMIN without NET_ADMIN or a volume": (
        Privileges(ADMIN, devices=FUSE, volume=False, masked=False, cgroup_writable=True),
        Works(()),
    ),
    "the fewest": (
        Privileges(FEWEST, devices=FUSE, masked=False, cgroup_writable=True),
        Works(_ON_A_VOLUME),
    ),
    "the fewest with control groups of version 2 alone": (
        Privileges(FEWEST, devices=FUSE, masked=False, cgroup_writable=True, controllers=False),
        Works(_ON_A_VOLUME),
    ),
    "the fewest without fuse and loop devices": (
        Privileges(FEWEST, masked=False, cgroup_writable=True),
        Works(()),
    ),
    "docker's own": (
        Privileges(devices=FUSE),
        Refuses(("sandbox", "cgroup"), (*_ADD_ADMIN, *_WRITABLE)),
    ),
    "docker's own with a seccomp filter": (
        Privileges(devices=FUSE, seccomp=True),
        Refuses(("sandbox", "cgroup"), (*_ADD_ADMIN, *_WRITABLE)),
    ),
    "all but a seccomp filter": (
        Privileges(NET_ADMIN, devices=FUSE, seccomp=True, masked=False, cgroup_writable=True),
        Refuses(("sandbox",), ("seccomp=unconfined", "seccompProfile: {type: Unconfined}")),
    ),
    "docker's own without fuse": (
        Privileges(),
        Refuses(("sandbox", "cgroup"), _ADD_ADMIN),
    ),
    "a user namespace with docker's own": (
        Privileges(devices=FUSE, user_namespace=True),
        Refuses(("sandbox", "cgroup"), _ADD_ADMIN),
    ),
    "a user namespace with everything in it": (
        Privileges(None, devices=FUSE, user_namespace=True, masked=False, cgroup_writable=True),
        Works(("rootless",)),
    ),
    "a user namespace with SYS_ADMIN and NET_ADMIN": (
        Privileges(NET_ADMIN, devices=FUSE, user_namespace=True, masked=False, cgroup_writable=True),
        Works(("rootless",)),
    ),
    "a user namespace without NET_ADMIN": (
        Privileges(ADMIN, devices=FUSE, user_namespace=True, masked=False, cgroup_writable=True),
        Works(("rootless",)),
    ),
    "a user namespace behind Docker's masks": (
        Privileges(NET_ADMIN, devices=FUSE, user_namespace=True, cgroup_writable=True),
        Works(("rootless",)),
    ),
    "an ordinary user": (
        Privileges((), devices=FUSE, uid=1000),
        Refuses(("root", "sandbox"), ("--user 0", "runAsUser: 0", *_WRITABLE, "CAP_SYS_ADMIN")),
    ),
}


@pytest.fixture(params=[name for name, (_, said) in ROWS.items() if isinstance(said, Works)])
def working(request: pytest.FixtureRequest) -> tuple[Privileges, Works]:
    privileges, said = ROWS[request.param]
    assert isinstance(said, Works)
    return privileges, said


@pytest.fixture(params=[name for name, (_, said) in ROWS.items() if isinstance(said, Refuses)])
def refusing(request: pytest.FixtureRequest) -> tuple[Privileges, Refuses]:
    privileges, said = ROWS[request.param]
    assert isinstance(said, Refuses)
    return privileges, said


def started(container: Container) -> httpx.Client:
    eventually(
        lambda: LAST_WORDS in container.stdout.read_text() or container.process.poll() is not None, timeout_s=START_S
    )
    assert container.process.poll() is None, container.stderr.read_text()
    return container.client()


def test_a_container_that_passes_its_doctor_works_completely(working: tuple[Privileges, Works], tmp_path: Path) -> None:
    privileges, said = working
    status, text = doctor(tmp_path / "doctor", privileges)
    checks = {check["name"]: check for check in json.loads(text)["checks"]}
    assert status == 0, text
    found = tuple(name.removeprefix("driver ") for name, c in checks.items() if name.startswith("driver ") and c["ok"])
    assert found == said.drivers
    how = f"as overlays, with the driver {found[0]}" if found else "as copies only: no mount driver is offered here"
    assert (checks["restores"]["ok"], checks["restores"]["detail"]) == (bool(found), how)
    assert checks["user limits"]["ok"], text
    assert checks["limits"]["ok"] == has_limits(privileges)
    assert checks["limits"]["ok"] or "unified_cgroup_hierarchy" in checks["limits"]["fix"]
    settings = {"HOLDFAST_ON_SLEEP": "backup", "HOLDFAST_SLEEP_AFTER_S": "3"}

    with serving(tmp_path / "serve", privileges, environment=settings) as container, started(container) as client:
        assert ("warning: restores as copies only" in container.stdout.read_text()) == (not found)
        box = HttpBox(client, "box")
        client.put(f"{box.url}/file/workspace/put", content=b"put").raise_for_status()
        box.sh("mkdir sub; echo kept > sub/file")
        assert limits_of(box) == (["memory_bytes", "processes"] if has_limits(privileges) else [])
        handle = box.backup("/workspace")
        box.sh("rm -r sub put")
        for mode in RestoreMode:
            other = HttpBox(client, mode)
            if mode is RestoreMode.OVERLAY and not found:
                answer = other.post("restore", **handle, mode=mode)
                assert answer.json()["context"]["reason"] == "NO_MOUNT_DRIVER"
            else:
                other.restore(handle, mode=mode)
                assert other.sh("cat put sub/file; echo more > sub/more") == "putkept\n"
        assert box.restore(handle).get("mode") == (None if found else RestoreMode.COPY)
        eventually(lambda: not box.info()["running"], timeout_s=START_S)
        assert box.sh("cat put sub/file; ls -A") == "putkept\nput\nsub\n"
        assert client.delete(box.url).status_code == 204
        assert container.stop() == 0


def limits_of(box: HttpBox) -> list[str]:
    """Returns the limits that a sandbox reports as in force, while a command keeps it awake."""
    running = box.start("sh", "-euc", "echo started; until [ -e go ]; do sleep 0.1; done; rm go")
    running.said(b"started")
    limits = box.info()["limits"]
    box.write("/workspace/go", b"")
    assert running.result().exit_code == 0
    return sorted(name for name, limit in limits.items() if limit is not None)


def has_limits(privileges: Privileges) -> bool:
    """True if the memory and the processes of commands can be limited in such a container on this machine."""
    return privileges.controllers or not Hierarchies.find().v1


def test_a_container_that_fails_its_doctor_is_refused_with_the_lines_to_change(
    refusing: tuple[Privileges, Refuses], tmp_path: Path
) -> None:
    privileges, said = refusing
    status, text = doctor(tmp_path / "doctor", privileges)
    checks = {check["name"]: check for check in json.loads(text)["checks"]}
    with serving(tmp_path / "serve", privileges) as container:
        assert container.process.wait(START_S) == 1
        error, hint = container.stderr.read_text().splitlines()[-2:]

    assert status == 1
    assert all(checks[name]["required"] and not checks[name]["ok"] for name in said.failing), text
    assert all(
        len(f"{check['detail']} {check.get('fix')}") < 600 and "\n" not in check["detail"] for check in checks.values()
    )
    assert "Traceback" not in container.stderr.read_text()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    for word in said.words:
        assert word in text
        assert privileges.uid or word in hint
