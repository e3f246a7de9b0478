"""Faulty nodes: tools replaced by scripts earlier in the PATH, and limits on processes."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from actors.node import process
from tests.support.control_groups import is_removed
from tests.support.mount_leaks import wait_until

_PIDS = Path("/sys/fs/cgroup/pids")


@contextmanager
def tools_replaced(folder: Path, scripts: Mapping[str, str]) -> Iterator[None]:
    """Replaces tools with these shell scripts within the block; `{real}` in a script runs the real tool."""
    before, shims = process.ENVIRONMENT["PATH"], folder / f"shims-{uuid.uuid4().hex}"
    shims.mkdir()
    for name, script in scripts.items():
        real = shutil.which(name, path=before)
        shim = shims / name
        shim.write_text("#!/bin/sh\n" + script.replace("{real}", f'exec {real} "$@"') + "\n")
        shim.chmod(0o755)
    process.ENVIRONMENT["PATH"] = f"{shims}:{before}"
    try:
        yield
    finally:
        process.ENVIRONMENT["PATH"] = before
        shutil.rmtree(shims)


@contextmanager
def processes_limited(limit: int) -> Iterator[str]:
    """The head of a shell script that limits itself and its children to this many processes and threads."""
    group = _PIDS / f"holdfast-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / "pids.max").write_text(str(limit))
        yield f"echo $$ > {group}/cgroup.procs; "
    finally:
        assert wait_until(lambda: is_removed(group)), "a process of the group does not end"
