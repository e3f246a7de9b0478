"""Runs the benchmark. Compare the ratios of one run; no time is a promise.

make bench                  everything, an hour
make bench BENCH=--quick    smaller directories and fewer rounds, a few minutes
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from bench import calls, first_calls, memory, report
from bench.directories import Directory
from bench.memory import Figure
from bench.samples import Row
from bench.service import running
from bench.tools import Tools, console
from bench.workloads import workloads

WITHOUT_DIRECTORY = "none"
NICENESS_OF_RAY_WORKERS = 15
"""Source: RAY_worker_niceness in Ray's ray_config_def.h."""


def main() -> int:
    """Runs everything; prints the tables, and writes bench.json and bench.svg.

    Returns 1 if anything failed, or nothing was measured.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller directories and fewer rounds")
    parser.add_argument("--rounds", type=int, help="rounds after the warm-up; by default 5, and 1 with --quick")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for bench.json and bench.svg")
    parser.add_argument(
        "--only", metavar="NAME", help=f"only the directory of this name; {WITHOUT_DIRECTORY!r}: the rows without one"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is stopped and removed
    described = report.machine()
    rows: list[Row] = []
    figures: list[Figure] = []
    try:
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as scratch:
            measure(Path(scratch), rows, figures, given)
    finally:
        report.show(rows, figures)
        report.write(given.out, rows, figures, described | {"load after": report.load()})
        console.print(f"written: {given.out / 'bench.json'}, {given.out / 'bench.svg'}")
    return 1 if not rows or any(row.failures for row in rows) else 0


def measure(scratch: Path, rows: list[Row], figures: list[Figure], given: argparse.Namespace) -> None:
    """Measures everything that was asked for, and adds it to `rows` and `figures`."""
    quick, rounds = given.quick, given.rounds or (1 if given.quick else 5)
    with running(scratch / "data") as holdfast, closing(Tools(holdfast, scratch, rounds=rounds)) as tools:
        # Else the other tools would go before Holdfast's on a busy machine.
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS_OF_RAY_WORKERS)
        for workload in workloads(tools.folder("workloads"), quick=quick, only=given.only):
            figures.append((f"workload: {workload.name}", workload.description))
            console.print(f"[dim]{figures[-1][0]}, {figures[-1][1]}[/dim]")
            rows += Directory(tools, workload, forks=3 if quick else 10).rows()
        if given.only not in (None, WITHOUT_DIRECTORY):
            return
        forks, boxes = (10, 5) if quick else (50, 40)
        limits = first_calls.EmptyActors.measured(rounds=rounds, many=forks, idlers=boxes)
        rows += calls.rows(tools, limits, forks=forks, file_mib=32 if quick else 256)
        rows.append(first_calls.with_a_waiting_worker(holdfast, rounds=rounds))
        figures += memory.figures(tools, limits.idle, boxes=boxes, size_mib=50 if quick else 500)
    rows.append(first_calls.without_a_worker(scratch / "cold", limits, rounds=rounds))


if __name__ == "__main__":
    sys.exit(main())
