"""Shows the rows: a table, a JSON file, and a chart as SVG."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.memory import Figure
from bench.samples import Row

_LINE, _BAR, _LABELS, _SIDE = 20, 14, 620, 260
"""Sizes in the chart, in pixels: of a line, a bar, the column of labels, and the bars' room on each side of 1."""
_LARGEST = 100.0
"""The largest ratio that the chart has room for, and the reciprocal of the smallest."""


def load() -> str:
    """The number of processes that ran or waited in the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def machine() -> dict[str, str]:
    """A description of this machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next(line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processors": f"{len(os.sched_getaffinity(0))} of {model}",
        "memory": f"{memory_gib:.0f} GiB",
        "kernel": platform.release(),
        "load before": load(),
        **{tool: version(command) for tool, command in _VERSIONS.items()},
    }


_VERSIONS = {
    "mksquashfs": ["mksquashfs", "-version"],
    "curl": ["curl", "--version"],
    "restic": ["restic", "version"],
    "zstd": ["zstd", "--version"],
}


def version(command: Sequence[str]) -> str:
    """The first line that a tool says of itself."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "not installed"
    return next(iter((said.stdout or said.stderr).splitlines()), "")


def show(rows: Sequence[Row], figures: Sequence[Figure]) -> None:
    """Prints the tables. A ratio compares the medians of one run with the row's references."""
    table = Table("workload", "what", "contestant", "median", "min", "max", "ratio", "reach", "sent")
    for row in rows:
        for name, times in row.times_s.items():
            sent = row.sent_mb(name)
            table.add_row(
                row.workload,
                row.what,
                name,
                *(f"{figure * 1000:,.1f} ms" for figure in (row.median_s(name), min(times), max(times))),
                "\n".join(f"{ratio:.3g} x {reference}" for reference, ratio in row.ratios(name).items()),
                f"<= {row.reach:g}" if row.reach and name == "holdfast" else "",
                f"{sent:.1f} MB" if sent >= 0.05 else "",
            )
        for name, why in row.failures.items():
            table.add_row(
                row.workload, row.what, f"[red]{name}[/red]", "[red]FAILED[/red]", "", "", f"[red]{why}[/red]"
            )
    console = Console(width=200)
    console.print(table)
    beside = Table("figure", "value")
    for figure in figures:
        beside.add_row(*figure)
    console.print(beside)


def document(rows: Sequence[Row], figures: Sequence[Figure], described: dict[str, Any]) -> str:
    """All measurements as JSON."""
    return json.dumps(
        {
            "machine": described,
            "rows": [
                {
                    "workload": row.workload,
                    "what": row.what,
                    "times_s": row.times_s,
                    "median_s": {name: row.median_s(name) for name in row.times_s},
                    "ratios": {name: row.ratios(name) for name in row.times_s},
                    "sent_bytes": row.sent_bytes,
                    "failures": row.failures,
                }
                for row in rows
            ],
            "figures": dict(figures),
        },
        indent=2,
    )


def chart(rows: Sequence[Row]) -> str:
    """The ratios to each row's first reference as bars, in an SVG file.

    The scale is logarithmic. Bars to the left of the line are faster than the reference, those to the right slower.
    """
    lines = list(_lines(rows))
    middle, height = _LABELS + _SIDE, (len(lines) + 1) * _LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{middle + _SIDE + 60}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (label, ratio) in enumerate(lines):
        top = number * _LINE + 8
        if ratio is None:
            parts.append(f'<text x="8" y="{top + 11}" font-weight="bold">{escape(label)}</text>')
            continue
        reach = _SIDE * min(1.0, abs(math.log(ratio, _LARGEST)))
        left, color = (middle - reach, "#3a7") if ratio <= 1 else (middle, "#c63")
        parts.append(f'<text x="{_LABELS - 8}" y="{top + 11}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect x="{left:.1f}" y="{top}" width="{reach:.1f}" height="{_BAR}" fill="{color}"/>')
        parts.append(f'<text x="{middle + (reach if ratio > 1 else 0) + 4:.1f}" y="{top + 11}">{ratio:.3g}</text>')
    parts.append(f'<line x1="{middle}" y1="0" x2="{middle}" y2="{height}" stroke="black"/>')
    return "\n".join([*parts, "</svg>", ""])


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, float | None]]:
    """The lines of the chart: headings without a ratio, and contestants."""
    for row in rows:
        yield f"{row.workload}: {row.what}, beside {row.references[0]}", None
        for name in row.times_s:
            if row.references[0] in (ratios := row.ratios(name)):
                yield name, ratios[row.references[0]]


def write(folder: Path, rows: Sequence[Row], figures: Sequence[Figure], described: dict[str, Any]) -> None:
    """Writes bench.json and bench.svg into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(document(rows, figures, described))
    (folder / "bench.svg").write_text(chart(rows))
