"""Placement of sandboxes on nodes. Arguments: path of the report, a folder, the bucket.

Reports the nodes of the sandboxes at first and after each of two sleeps; the node of a fork; and the error of a call
for which there was no room.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from actors.client import Sandbox, get_sandbox
from actors.errors import SandboxUnavailableError
from actors.rpc.calls import Call
from tests.support.ray_cluster import running

SLOTS_EACH = 3
SETTLED = 2 * (SLOTS_EACH - 1)
NAMES = [f"placed-{number}" for number in range(SETTLED)]


def main(folder: Path, bucket: str) -> dict[str, object]:
    with running(folder, bucket, slots=[SLOTS_EACH, SLOTS_EACH], settings={}) as world:
        boxes = [get_sandbox(name) for name in NAMES]
        for box in boxes:
            box.write_file("/workspace/file", box.id.encode())
        backups = [box.create_backup("/workspace") for box in boxes]
        rounds = [[world.place(name) for name in NAMES]]
        for _ in range(2):
            for box in boxes:
                put_to_sleep(box)
            for box in reversed(boxes):
                assert box.read_file("/workspace/file").decode() == box.id
            rounds.append([world.place(name) for name in NAMES])

        forks = []
        for number in range(2):  # each is the last that fits on its node
            origin = next(i for i, place in enumerate(rounds[0]) if place == number)
            fork = get_sandbox(f"fork-{number}")
            fork.restore_backup(backups[origin])
            assert fork.read_file("/workspace/file").decode() == NAMES[origin]
            forks.append((number, world.place(fork.id)))

        began = time.monotonic()
        try:
            get_sandbox("one-too-many").list_files()
            refused = None
        except SandboxUnavailableError as e:
            refused = e.context
        took_s = time.monotonic() - began
        get_sandbox(NAMES[0]).destroy()
        get_sandbox("one-too-many").list_files()
    return {"rounds": rounds, "forks": forks, "refused": refused, "took_s": took_s}


def put_to_sleep(box: Sandbox) -> None:
    Call(lambda: box.calls.actor.call_if_alive(lambda actor: actor.leave.remote(0.0), None)).result()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main(Path(sys.argv[2]), sys.argv[3])))
