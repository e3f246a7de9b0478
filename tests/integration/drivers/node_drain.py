"""One of three nodes is drained under load; of its ten sandboxes some sleep, some run commands, most have no backup.

Arguments: path of the report, a folder, the bucket. Reports the content and the node of each sandbox afterwards; how
the load's calls and the running commands ended; and how long the node took to become empty.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actors.client import Sandbox, get_sandbox
from actors.errors import HoldfastError
from tests.integration.drivers.node_loss import load
from tests.support.ray_cluster import PATIENCE_S, drain, node_folder, running
from tests.support.service import eventually

ASLEEP = [f"asleep-{number}" for number in range(4)]
BUSY = [f"busy-{number}" for number in range(3)]
IDLE = [f"idle-{number}" for number in range(3)]
NAMES = [*ASLEEP, *BUSY, *IDLE]
WITHIN_S = 120.0
_LINES = "i=0; while true; do i=$((i+1)); echo $i >> /app/lines; echo $i; sleep 0.05; done"


def main(folder: Path, bucket: str) -> dict[str, object]:
    with running(folder, bucket, slots=[12], settings={}) as world:
        boxes = {name: get_sandbox(name) for name in NAMES}
        for box in boxes.values():
            box.write_file("/workspace/file", box.id.encode())
            box.exec(["sh", "-c", "mkdir -p /app/nested; echo inner > /app/nested/inner; ln -s nested /app/link"])
        for name in (ASLEEP[0], BUSY[0], IDLE[0]):
            boxes[name].create_backup("/workspace")
            boxes[name].write_file("/workspace/file", f"{name} since".encode())
        for name in ASLEEP:
            eventually(lambda name=name: put_to_sleep(boxes[name]), timeout_s=PATIENCE_S)  # type: ignore[misc]
        before = Counter(world.place(name) for name in NAMES)
        spare = [world.nodes.add(slots=12) for _ in range(2)]
        commands = {name: Lines(boxes[name]) for name in BUSY}
        ended: Counter[str] = Counter()
        with load([boxes[name] for name in [*BUSY, *IDLE, ASLEEP[0]]], ended) as counted:
            counted.wait_for(20)
            drain(world.nodes.id(0), within_s=WITHIN_S)
            began = time.monotonic()
            with ThreadPoolExecutor(len(NAMES)) as pool:
                held = dict(pool.map(lambda name: (name, content(boxes[name])), NAMES))
            eventually(lambda: not world.nodes.is_alive(0), timeout_s=PATIENCE_S)
            empty_s = time.monotonic() - began
        lines = {name: commands[name].kept(boxes[name]) for name in BUSY}
        again = {name: content(boxes[name]) for name in NAMES}
        eventually(lambda: all(world.place(name) is not None for name in NAMES), timeout_s=PATIENCE_S)
        return {
            "before": before,
            "spare": spare,
            "after": Counter(world.place(name) for name in NAMES),
            "held": held,
            "again": again,
            "ended": ended,
            "commands": {name: commands[name].end for name in BUSY},
            "lines": lines,
            "empty_s": empty_s,
            "left": [path.name for path in node_folder(folder, 0).glob("node/boxes/*/*")],
            "recovered": [name for name in NAMES if (state := world.state(name)) and state.recovery],
        }


def put_to_sleep(box: Sandbox) -> bool:
    """Puts the sandbox to sleep, its files on the node's disk; true if it is asleep."""
    if box.calls.awake().result():
        box.calls.actor.find().leave.remote(0.0)  # type: ignore[union-attr]
    return not box.calls.awake().result()


def content(box: Sandbox) -> list[str]:
    """Returns the content that a caller finds; it waits for the sandbox."""
    found = box.exec(["sh", "-c", "cat /workspace/file; echo; cat /app/link/inner"])
    return found.stdout.decode().splitlines()


class Lines:
    """A running command that writes numbers into a file and prints each of them, until it is ended."""

    def __init__(self, box: Sandbox) -> None:
        self.end: str | None = None
        self._seen = bytearray()
        begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(box, begun), daemon=True)
        self._thread.start()
        assert begun.wait(PATIENCE_S)

    def _run(self, box: Sandbox, begun: threading.Event) -> None:
        try:
            for event in box.exec_stream(["sh", "-c", _LINES]):
                self._seen += getattr(event, "data", b"")
                begun.set()
        except HoldfastError as e:
            self.end = f"{e.code} {e.context.get('outcome')} {e.context.get('reason')} {e.retryable}"

    def kept(self, box: Sandbox) -> bool:
        """True if the file has every line that the command has printed."""
        self._thread.join(PATIENCE_S)
        said = self._seen.decode().split("\n")[:-1]
        return len(said) > 0 and box.read_file("/app/lines").decode().split()[: len(said)] == said


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main(Path(sys.argv[2]), sys.argv[3])))
