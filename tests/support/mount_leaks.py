"""Finds what a test leaves behind on the node, which must be nothing."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path

from actors.node import mountinfo


def children() -> dict[int, str]:
    """Living child processes of this process, and their names."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(OSError):  # the child has ended meanwhile
                    found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


def child_named(name: str) -> int:
    """The only child process with this name."""
    (pid,) = (pid for pid, found in children().items() if found == name)
    return pid


def processes_about(*words: str) -> dict[int, str]:
    """Every process of any user with one of the words in its arguments, open files, control group or own mounts."""
    found = {}
    ours = os.readlink("/proc/self/ns/mnt")
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            texts = [(entry / name).read_text(errors="replace") for name in ("cmdline", "cgroup")]
            texts += targets(entry / "fd")
            if os.readlink(entry / "ns" / "mnt") != ours:
                texts.append((entry / "mountinfo").read_text(errors="replace"))
            if any(word in text for word in words for text in texts):
                found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def targets(folder: Path) -> list[str]:
    """The targets of a process's open files. It may close any of them, or end, meanwhile."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                found.append(os.readlink(folder / name))
    return found


def open_files() -> list[str]:
    """Open files of this process, except sockets (connections to stores come and go) and files of /proc."""
    return [path for path in targets(Path("/proc/self/fd")) if not path.startswith(("socket:", "/proc/"))]


def losses_in_hand() -> int:
    """Number of layers with a dead daemon that this process is handling."""
    return len([thread for thread in threading.enumerate() if thread.name.startswith("lost-")])


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> bool:
    """Waits for the condition; returns True if it became true in time. The default is meant for a busy machine."""
    deadline = time.monotonic() + timeout_s
    tick = threading.Event()
    while not condition():
        if time.monotonic() >= deadline:
            return condition()
        tick.wait(0.01)
    return True


@contextmanager
def nothing_leaks(scratch: Path) -> Iterator[None]:
    """Fails unless mounts and loop devices under `scratch` and all new children are gone soon after the block."""
    before = children().keys()
    yield
    assert wait_until(lambda: not _left(scratch, before)), _left(scratch, before)


def loop_devices(scratch: Path) -> list[str]:
    """Loop devices with backing files under `scratch`."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # the device was detached meanwhile
            if Path(path.read_text().strip()).is_relative_to(scratch):
                found.append(path.parts[3])
    return found


def _left(scratch: Path, before: AbstractSet[int]) -> list[object]:
    started = {pid: name for pid, name in children().items() if pid not in before}
    return [*mountinfo.mounts_under(scratch), *loop_devices(scratch), *started.items()]
