"""The sandbox lock: at most one process of a node has a sandbox awake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.node.errors import MountBusyError
from actors.sandbox.sandbox_lock import SandboxLock
from tests.support.sandboxes import Background, crash

HOLDER = "tests.support.programs.lock_holder"
TRIER = "tests.support.programs.lock_trier"


@contextmanager
def held_by_another(file: Path, end: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", HOLDER, str(file), end]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


@pytest.mark.parametrize("end", ["for good", "gives up", "exits", "is killed"])
def test_a_waiting_process_gets_the_sandbox_lock_on_release_and_then_excludes_others(tmp_path: Path, end: str) -> None:
    file = tmp_path / "presence" / "default.box"
    with held_by_another(file, end) as holder:
        mine = SandboxLock(file)
        with pytest.raises(MountBusyError):
            mine.claim(wait_s=0.1)
        waiting = Background(lambda: mine.claim(wait_s=60))
        assert not waiting.ended
        if end == "is killed":
            holder.kill()
        else:
            assert holder.stdin is not None
            holder.stdin.write("\n")
            holder.stdin.flush()
        waiting.result()
    mine.claim()
    assert file.exists()
    assert crash(TRIER, str(file)).stdout == "busy\n"
    mine.release(for_good=True)
    assert not file.exists()
    mine.release()
    assert crash(TRIER, str(file)).stdout == "taken\n"
