"""A node dies under load, with ten sandboxes. Arguments: path of the report, a folder, the bucket.

Reports, for each sandbox, how long after the node's death it answered with its last backed-up content, its node then,
and its state's description of the recovery; how long a sandbox took to come back without a call; and how the calls of
the load ended.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actors.client import Sandbox, get_sandbox
from actors.errors import HoldfastError, SandboxUnavailableError
from storage.metadata import SandboxState
from tests.support.mount_leaks import wait_until
from tests.support.ray_cluster import PATIENCE_S, children, running
from tests.support.service import eventually

NAMES = [f"lost-{number}" for number in range(10)]
UNCALLED = "nobody-calls"
CALLERS = 4
WARM = 5


def main(folder: Path, bucket: str) -> dict[str, object]:
    with running(folder, bucket, slots=[12], settings={"warm_workers": WARM}) as world:
        boxes = [get_sandbox(name) for name in NAMES]
        for box in (*boxes, uncalled := get_sandbox(UNCALLED)):
            box.write_file("/workspace/file", f"{box.id} backed up".encode())
            box.write_file("/app/nested/inner", b"inner")
        backups = {box.id: (box.create_backup("/workspace").id, box.create_backup("/app/nested").id) for box in boxes}
        alone = uncalled.create_backup("/workspace").id
        for box in boxes:
            box.write_file("/workspace/file", b"written after the backup")
        before = Counter(world.place(name) for name in NAMES)
        spare = [world.nodes.add(slots=8) for _ in range(2)]
        for number in spare:  # the node's host has taken one of the warm workers
            raylet = world.nodes.raylet(number)
            eventually(lambda raylet=raylet: len(children(raylet, b"ray::IDLE")) >= WARM - 1, timeout_s=PATIENCE_S)  # type: ignore[misc]
        ended: Counter[str] = Counter()
        with load(boxes, ended) as counted:
            counted.wait_for(20)
            world.nodes.kill(0)
            died_at = time.monotonic()
            with ThreadPoolExecutor(len(boxes)) as pool:
                took = list(pool.map(lambda box: back_after_s(box, died_at), boxes))
            eventually(lambda: recovered(world.state(UNCALLED)), timeout_s=PATIENCE_S)
            uncalled_s = time.monotonic() - died_at
        eventually(lambda: all(recovered(world.state(name)) for name in NAMES), timeout_s=PATIENCE_S)
        states = [world.state(name) for name in NAMES]
        return {
            "before": before,
            "after": Counter(world.place(name) for name in NAMES),
            "took_s": took,
            "uncalled_s": uncalled_s,
            "uncalled": [{"/workspace": [alone, None]}, recovered(world.state(UNCALLED))],
            "ended": ended,
            "backups": backups,
            "recovered": {name: recovered(state) for name, state in zip(NAMES, states, strict=True)},
            "epochs": [state.epoch if state else None for state in states],
        }


def recovered(state: SandboxState | None) -> dict[str, list[str | None]]:
    """Returns the recovery in a state: the backup, or the error, of each directory."""
    found = state.recovery if state is not None else None
    return {row.dir: [row.backup_id, row.error] for row in found.directories} if found is not None else {}


def back_after_s(box: Sandbox, died_at: float) -> float:
    """Calls until the sandbox answers with its backed-up content; until then only a typed, retryable error may come."""
    while True:
        try:
            assert box.read_file("/workspace/file") == f"{box.id} backed up".encode()
            assert box.read_file("/app/nested/inner") == b"inner"
            return time.monotonic() - died_at
        except SandboxUnavailableError:
            if time.monotonic() - died_at > PATIENCE_S:
                raise


class load:
    """A load of commands from several callers; counts how they end."""

    def __init__(self, boxes: list[Sandbox], ended: Counter[str]) -> None:
        self._boxes, self._ended = boxes, ended
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(seed,), daemon=True) for seed in range(CALLERS)]

    def __enter__(self) -> load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def wait_for(self, calls: int) -> None:
        assert wait_until(lambda: self._ended.total() >= calls, timeout_s=PATIENCE_S)

    def _call(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._stopping.wait(0.05):
            try:
                chance.choice(self._boxes).exec(["sh", "-c", "echo more >> /tmp/load"])
                self._ended["ok"] += 1
            except HoldfastError as e:
                self._ended[f"{e.code} {e.context.get('outcome')}"] += 1


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main(Path(sys.argv[2]), sys.argv[3])))
