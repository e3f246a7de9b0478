"""Benchmark of the figures that matter to a user, over HTTP on this machine: medians of several runs each.

Compare runs made side by side on one machine; no figure here is a promise.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from demo import execute, start, tar_of
from rich.console import Console
from rich.table import Table

SMALL_RUNS, COLD_RUNS, LARGE_RUNS = 20, 10, 5
NO_PRESTART = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
"""Settings of Ray that keep it from starting a worker before it is needed."""
FILE_BYTES = 256 * 1024**2


def main() -> int:
    """Runs everything and prints one table."""
    bench = Bench()
    with running() as (api, data_dir):
        measure(bench, api, data_dir)
    with running(HOLDFAST_WARM_WORKERS="0", **NO_PRESTART) as (api, _):
        bench.row("first command in a new sandbox, no worker waits", first_command(api), COLD_RUNS, before=pause)
    bench.add("a Ray actor that does nothing, no worker waits", noop_actors())
    Console().print(bench.table)
    return 0


@contextmanager
def running(**settings: str) -> Iterator[tuple[httpx.Client, Path]]:
    """Runs a service within the block; yields a client for it, and its data folder."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        service = start(Path(folder), **settings)
        try:
            yield service.api, Path(folder)
        finally:
            service.stop()


class Bench:
    """Measures times, and collects them in a table."""

    def __init__(self) -> None:
        self.table = Table("what", "median", "min", "max", "runs")

    def row(self, what: str, run: Callable[[], object], runs: int, before: Callable[[], object] = lambda: None) -> None:
        """Times some runs, each after `before`, whose time does not count."""
        times = []
        for _ in range(runs):
            before()
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        self.add(what, times)

    def add(self, what: str, times_s: Sequence[float]) -> None:
        """Adds a row to the table."""
        figures = (statistics.median(times_s), min(times_s), max(times_s))
        self.table.add_row(what, *(f"{figure * 1000:.1f} ms" for figure in figures), str(len(times_s)))


def pause() -> None:
    """Waits long enough for a used-up warm worker to be replaced, and for the new one to load everything."""
    time.sleep(4)


def first_command(api: httpx.Client) -> Callable[[], object]:
    """Returns a function that runs a command in a new sandbox at each call."""
    fresh = iter(range(10_000))
    return lambda: execute(api, f"new-{next(fresh)}", "true")


def noop_actors() -> list[float]:
    """Times, in s, from creation to first answer of actors that do nothing, in a Ray of their own."""
    program = Path(__file__).with_name("noop_actor.py")
    environment = {**os.environ, **NO_PRESTART, "RAY_AUTH_MODE": "disabled"}
    said = subprocess.run(
        [sys.executable, program, str(COLD_RUNS)], stdout=subprocess.PIPE, check=True, text=True, env=environment
    )
    return [float(line) for line in said.stdout.splitlines()]


def measure(bench: Bench, api: httpx.Client, data_dir: Path) -> None:
    """Measures all rows of a service with its default settings."""
    row = bench.row

    def post(path: str, body: dict[str, object]) -> dict[str, str]:
        answer: dict[str, str] = api.post(path, json=body).raise_for_status().json()
        return answer

    fresh = iter(range(10_000))

    def first_file() -> None:
        api.put(f"/v1/sandbox/file-{next(fresh)}/file/workspace/a", content=b"a").raise_for_status()

    row("first file in a new sandbox, a worker waits", first_file, COLD_RUNS, before=pause)
    row("first command in a new sandbox, a worker waits", first_command(api), COLD_RUNS, before=pause)
    box = "/v1/sandbox/bench"
    execute(api, "bench", "echo hello > small.txt")
    row("exec true", lambda: execute(api, "bench", "true"), SMALL_RUNS)
    row("state of a sandbox", lambda: api.get(box).raise_for_status(), SMALL_RUNS)
    row("back up one small file", lambda: post(f"{box}/backup", {"dir": "/workspace"}), SMALL_RUNS)
    small = post(f"{box}/backup", {"dir": "/workspace"})
    row("roll it back (overlay)", lambda: post(f"{box}/restore", dict(small)), SMALL_RUNS)
    row("roll it back (copy)", lambda: post(f"{box}/restore", {**small, "mode": "copy"}), SMALL_RUNS)

    site_packages = Path(next(path for path in sys.path if path.endswith("site-packages")))
    api.post("/v1/sandbox/tree/hydrate", content=tar_of(site_packages)).raise_for_status()
    tree = "/v1/sandbox/tree"
    row("back up this Python environment", lambda: post(f"{tree}/backup", {"dir": "/workspace"}), LARGE_RUNS)
    large = post(f"{tree}/backup", {"dir": "/workspace"})
    row("roll it back (overlay, archive cached)", lambda: post(f"{tree}/restore", dict(large)), LARGE_RUNS)
    row("roll it back (overlay, archive downloaded)", lambda: post(f"{tree}/restore", dict(large)), LARGE_RUNS,
        before=lambda: [path.unlink() for path in (data_dir / "node" / "cache").glob("*.sqsh")])  # fmt: skip
    row("roll it back (copy)", lambda: post(f"{tree}/restore", {**large, "mode": "copy"}), LARGE_RUNS)
    forks = iter(range(10_000))
    row("fork it into a new sandbox", lambda: post(f"/v1/sandbox/fork-{next(forks)}/restore", dict(large)), LARGE_RUNS)

    backup = threading.Thread(target=lambda: post(f"{tree}/backup", {"dir": "/workspace"}))
    backup.start()
    row("state of a sandbox while it is backed up", lambda: api.get(tree).raise_for_status(), SMALL_RUNS)
    backup.join()

    data = os.urandom(1024**2) * (FILE_BYTES // 1024**2)
    file = f"{box}/file/workspace/big"
    row(f"send a file of {FILE_BYTES >> 20} MiB", lambda: api.put(file, content=io.BytesIO(data)), LARGE_RUNS)
    row(f"fetch a file of {FILE_BYTES >> 20} MiB", lambda: api.get(file).raise_for_status(), LARGE_RUNS)


if __name__ == "__main__":
    sys.exit(main())
