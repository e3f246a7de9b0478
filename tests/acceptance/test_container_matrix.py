"""What the service does with each set of privileges that a container may have, against what `doctor` says there.

Each row either works wholly, or `serve` refuses with the cause and the lines to change, those of `docker run` and of a
pod's manifest. Nothing is taken for a damaged backup, and no sandbox wakes empty, because a privilege is missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.acceptance.http_box import HttpBox
from tests.support.container import DOCKER, FEWEST, Container, Privileges, doctor, loops, serving
from tests.support.service import LAST_WORDS, START_S, eventually

pytestmark = pytest.mark.timeout(600)

ADMIN = (*DOCKER, "SYS_ADMIN")
NET_ADMIN = (*ADMIN, "NET_ADMIN")
FUSE = ("fuse",)


@dataclass(frozen=True, slots=True)
class Works:
    """A row that starts. `drivers` are those that its doctor finds."""

    drivers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refuses:
    """A row that does not start: what its doctor finds failing, and the words of the lines to change."""

    failing: tuple[str, ...]
    words: tuple[str, ...]


_ADD_ADMIN = ("CAP_SYS_ADMIN", "--cap-add SYS_ADMIN", "capabilities.add: [SYS_ADMIN]")
_WRITABLE = ("remount,bind,rw /sys/fs/cgroup", "writable-cgroups=true")

ROWS: dict[str, tuple[Privileges, Works | Refuses]] = {
    "everything": (
        Privileges(None, host_devices=True, masked=False, cgroup_writable=True),
        Works(("kernel", "mixed", "fuse")),
    ),
    "everything with a /dev of few devices": (
        Privileges(None, devices=(*FUSE, *loops()), masked=False, cgroup_writable=True),
        Works(("kernel", "mixed", "fuse")),
    ),
    "SYS_ADMIN with a read-only cgroup": (
        Privileges(ADMIN, devices=FUSE),
        Refuses(("cgroup",), _WRITABLE),
    ),
    "SYS_ADMIN and NET_ADMIN behind Docker's masks": (
        Privileges(NET_ADMIN, devices=FUSE, cgroup_writable=True),
        Works(("mixed", "fuse")),
    ),
    "SYS_ADMIN without NET_ADMIN": (
        Privileges(ADMIN, devices=FUSE, masked=False, cgroup_writable=True),
        Works(("mixed", "fuse")),
    ),
    "SYS_ADMIN without NET_ADMIN or a volume": (
        Privileges(ADMIN, devices=FUSE, volume=False, masked=False, cgroup_writable=True),
        Works(("fuse",)),
    ),
    "the fewest": (
        Privileges(FEWEST, devices=FUSE, masked=False, cgroup_writable=True),
        Works(("mixed", "fuse")),
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
        Works(("fuse",)),
    ),
    "a user namespace with SYS_ADMIN and NET_ADMIN": (
        Privileges(NET_ADMIN, devices=FUSE, user_namespace=True, masked=False, cgroup_writable=True),
        Works(("fuse",)),
    ),
    "a user namespace without NET_ADMIN": (
        Privileges(ADMIN, devices=FUSE, user_namespace=True, masked=False, cgroup_writable=True),
        Works(("fuse",)),
    ),
    "a user namespace behind Docker's masks": (
        Privileges(NET_ADMIN, devices=FUSE, user_namespace=True, cgroup_writable=True),
        Works(("fuse",)),
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


def test_what_its_doctor_allows_works_wholly(working: tuple[Privileges, Works], tmp_path: Path) -> None:
    privileges, said = working
    status, text = doctor(tmp_path / "doctor", privileges)
    checks = {check["name"]: check for check in json.loads(text)["checks"]}
    assert status == 0, text
    found = tuple(name.removeprefix("driver ") for name, c in checks.items() if name.startswith("driver ") and c["ok"])
    assert found == said.drivers
    settings = {"HOLDFAST_ON_SLEEP": "backup", "HOLDFAST_SLEEP_AFTER_S": "3"}

    with serving(tmp_path / "serve", privileges, environment=settings) as container, started(container) as client:
        box = HttpBox(client, "box")
        client.put(f"{box.url}/file/workspace/put", content=b"put").raise_for_status()
        box.sh("mkdir sub; echo kept > sub/file")
        handle = box.backup("/workspace")
        box.sh("rm -r sub put")
        for mode in ("overlay", "copy"):
            other = HttpBox(client, mode)
            other.restore(handle, dir="/workspace", mode=mode)
            assert other.sh("cat put sub/file; echo more > sub/more") == "putkept\n"
        box.restore(handle)
        eventually(lambda: not box.info()["running"], timeout_s=START_S)
        assert box.sh("cat put sub/file; ls -A") == "putkept\nput\nsub\n"
        assert client.delete(box.url).status_code == 204
        assert container.stop() == 0


def test_what_its_doctor_forbids_is_refused_with_the_lines_to_change(
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
