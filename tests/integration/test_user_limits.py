"""The kernel's limits per user apply to each sandbox separately: one at its limit leaves the others theirs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from actors.node import process, user_namespace
from actors.node.bubblewrap import Bind, Box, Identity, boxed
from actors.node.user_namespace import UserNamespace
from tests.support import hoard
from tests.support.sandboxes import UID

pytestmark = pytest.mark.alone
HOARD = Path(hoard.__file__)
TAKEN = 40
"""Number of pending signals that a sandbox may have in these tests."""
KINDS = ("inotify-instances", "timers", "queued-signals", "message-queues")
LIMITS = ["prlimit", f"--sigpending={TAKEN}", "--msgqueue=500000", "--nofile=4096"]


@contextmanager
def holding(kind: str, box: Box) -> Iterator[int]:
    """A command that takes a resource until it is refused, and holds it within the block; yields the amount."""
    program = Bind(HOARD, "/hoard.py")
    with boxed(box, ["/usr/bin/python3", program.target, kind], binds=[program]) as ready:
        child = process.start([*LIMITS, *ready.argv], stdin=subprocess.PIPE, pass_fds=ready.fds)
    try:
        assert child.stdout is not None and child.stderr is not None
        words = child.stdout.readline().split()
        assert words[:1] == [b"held"], child.stderr.read().decode()
        yield int(words[1])
    finally:
        process.kill_group(child)
        for pipe in (child.stdin, child.stdout, child.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[tuple[Box, Box]]:
    with ExitStack() as stack:
        one, other = (
            Box(uid=UID, hostname=name, binds=(), user_namespace=stack.enter_context(closing(_namespace(tmp_path))))
            for name in ("one", "other")
        )
        yield one, other


def _namespace(folder: Path, uid: int = UID) -> UserNamespace:
    return UserNamespace(folder / "owners", uid)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sandbox_at_its_limit_leaves_another_its_full_limit(boxes: tuple[Box, Box], kind: str) -> None:
    with holding(kind, boxes[0]) as taken, holding(kind, boxes[1]) as left:
        assert left == taken > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_of_one_sandbox_share_its_limit(boxes: tuple[Box, Box], kind: str) -> None:
    """Proves that there is a limit: without one the test above would pass, too."""
    with holding(kind, boxes[0]) as taken, holding(kind, boxes[0]) as left:
        assert left < taken


def test_files_belong_to_the_sandboxs_own_user_and_no_namespace_descriptor_is_inherited(
    tmp_path: Path, boxes: tuple[Box, Box]
) -> None:
    work, user = tmp_path / "work", boxes[0].user
    work.mkdir()
    os.chown(work, user, user)
    binds = (Bind(work, "/workspace", writable=True),)
    script = "umask 0; touch /workspace/made; id -u; ls /proc/self/fd | wc -l"
    for identity, uid in ((Identity.COMMAND, "1000"), (Identity.READER, "0")):
        with boxed(boxes[0], ["sh", "-c", script], identity=identity, binds=binds) as ready:
            ended = process.run(ready.argv, timeout_s=100, pass_fds=ready.fds)
        assert ended.stdout.decode().split() == [uid, "4"]  # 0 to 2, and that of the listed folder
        made = work / "made"
        assert (made.stat().st_uid, made.stat().st_gid) == (user, user)
        made.unlink()


def test_each_namespace_has_its_own_owner_who_is_free_again_after_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_namespace, "OWNERS", range(61_184, 61_187))  # one of them is the sandboxes' own user
    first, second, third = (_namespace(tmp_path) for _ in range(3))
    with closing(first), closing(second), closing(third):
        assert first.fd() is not None and second.fd() is not None
        assert third.fd() is None and third.obstacle is not None and "taken" in third.obstacle
        first.close()
        third.close()
        assert third.fd() is not None and third.obstacle is None
    assert sorted(file.name for file in (tmp_path / "owners").iterdir()) == ["61185", "61186"]


def test_a_command_runs_even_if_no_user_namespace_can_be_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    namespace = _namespace(tmp_path, uid=2**32 - 1)  # -1 is no uid, so no namespace can have it
    box = Box(uid=UID, hostname="one", binds=(), user_namespace=namespace)
    with closing(namespace), boxed(box, ["id", "-u"]) as ready:
        assert process.run(ready.argv, timeout_s=100, pass_fds=ready.fds).stdout == b"1000\n"
        assert namespace.obstacle is not None
