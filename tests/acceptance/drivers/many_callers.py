"""Many callers, and sandboxes that fall asleep between calls; each call writes its number into a file.

Arguments: path of the report, number of calls in all, of callers, and of sandboxes.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actors.client import Sandbox, get_sandbox

LONGEST_PAUSE_S = 0.08


def main(calls: int, callers: int, sandboxes: int) -> dict[str, object]:
    boxes = [get_sandbox(f"sleeper-{number}") for number in range(sandboxes)]
    numbers = iter(range(calls))
    pause = threading.Event()
    failed: list[str] = []
    times: list[float] = []
    actors: set[str] = set()

    def caller(seed: int) -> None:
        chance = random.Random(seed)
        for number in numbers:
            pause.wait(chance.uniform(0, LONGEST_PAUSE_S))
            began = time.monotonic()
            try:
                box = chance.choice(boxes)
                assert box.exec(["sh", "-c", f"echo {number} >> numbers"]).exit_code == 0
                actors.add(process_of(box))
            except Exception as e:
                failed.append(f"{number}: {type(e).__name__} {e}")
            times.append(time.monotonic() - began)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(caller, range(callers)))
    left = sorted(int(line) for box in boxes for line in box.read_file("/workspace/numbers").split())
    return {
        "failed": failed,
        "missing": sorted(set(range(calls)) - set(left)),
        "twice": len(left) - len(set(left)),
        "actors": len(actors),
        "median_s": statistics.median(times),
        "longest_s": max(times),
    }


def process_of(box: Sandbox) -> str:
    """Identifies the actor that serves the sandbox now; a sleeping sandbox has none."""
    info = box.info()
    return f"{box.id} {info.awake_since}" if info.running else ""


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main(*map(int, sys.argv[2:]))))
