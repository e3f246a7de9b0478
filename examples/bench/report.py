"""Shows the rows: a table, a JSON file, and a chart as SVG."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.samples import Row

_BAR_HEIGHT, _LABEL_WIDTH, _CHART_WIDTH, _LONGEST = 16, 420, 420, 2.0


def machine() -> dict[str, str]:
    """A description of this machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next(line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processors": f"{len(os.sched_getaffinity(0))} of {model}",
        "memory": f"{memory_gib:.0f} GiB",
        "kernel": platform.release(),
        "load before": f"{os.getloadavg()[0]:.1f}",
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


def show(rows: Sequence[Row], figures: Sequence[tuple[str, str]]) -> None:
    """Prints the tables. A ratio compares the medians of one run with the row's reference."""
    table = Table("workload", "what", "contestant", "median", "min", "max", "ratio", "reach", "stored")
    for row in rows:
        for name, times in row.times_s.items():
            ratio = row.ratio(name)
            table.add_row(
                row.workload,
                row.what,
                name,
                *(f"{figure * 1000:,.1f} ms" for figure in (row.median_s(name), min(times), max(times))),
                "" if ratio is None else f"{ratio:.2f} x {row.reference}",
                f"<= {row.reach:g}" if row.reach and name == "holdfast" else "",
                f"{row.stored_bytes[name] / 1e6:.1f} MB" if row.stored_bytes.get(name) else "",
            )
    console = Console(width=180)
    console.print(table)
    beside = Table("figure", "value")
    for figure in figures:
        beside.add_row(*figure)
    console.print(beside)


def document(rows: Sequence[Row], figures: Sequence[tuple[str, str]], described: dict[str, Any]) -> str:
    """All measurements as JSON."""
    return json.dumps(
        {
            "machine": described,
            "rows": [
                {
                    "workload": row.workload,
                    "what": row.what,
                    "reference": row.reference,
                    "times_s": row.times_s,
                    "stored_bytes": row.stored_bytes,
                    "ratios": {name: row.ratio(name) for name in row.times_s},
                }
                for row in rows
            ],
            "figures": dict(figures),
        },
        indent=2,
    )


def chart(rows: Sequence[Row]) -> str:
    """The ratios as bars, in an SVG file. The line is the reference; bars that end before it are faster."""
    bars = [
        (f"{row.workload}: {row.what}, {name}", ratio)
        for row in rows
        for name in row.times_s
        if (ratio := row.ratio(name)) is not None
    ]
    height = (len(bars) + 2) * (_BAR_HEIGHT + 4)
    unit = _CHART_WIDTH / _LONGEST
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL_WIDTH + _CHART_WIDTH + 60}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (label, ratio) in enumerate(bars):
        top = number * (_BAR_HEIGHT + 4) + 8
        width = min(ratio, _LONGEST) * unit
        color = "#3a7" if ratio <= 1 else "#c63"
        parts.append(f'<text x="{_LABEL_WIDTH - 8}" y="{top + 12}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect x="{_LABEL_WIDTH}" y="{top}" width="{width:.1f}" height="{_BAR_HEIGHT}" fill="{color}"/>')
        parts.append(f'<text x="{_LABEL_WIDTH + width + 4:.1f}" y="{top + 12}">{ratio:.2f}</text>')
    line = _LABEL_WIDTH + unit
    parts.append(f'<line x1="{line}" y1="0" x2="{line}" y2="{height}" stroke="black" stroke-dasharray="4"/>')
    return "\n".join([*parts, "</svg>", ""])


def write(folder: Path, rows: Sequence[Row], figures: Sequence[tuple[str, str]], described: dict[str, Any]) -> None:
    """Writes bench.json and bench.svg into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(document(rows, figures, described))
    (folder / "bench.svg").write_text(chart(rows))
