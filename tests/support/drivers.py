"""Programs that join a Ray cluster and report what they found, run in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.service import PROJECT, clean_environment


def reported(script: Path, *args: object, home: Path, env: Mapping[str, str], timeout_s: float) -> Any:
    """Runs a program to its end; it has to succeed. Returns the JSON document that it wrote to its first argument.

    Its standard output would not do: Ray prints warnings of the cluster there, at any time.
    """
    report = home / f"{script.stem}.json"
    done = subprocess.run(
        [sys.executable, script, report, *map(str, args)],
        env=clean_environment(home, {**env, "PYTHONPATH": str(PROJECT)}),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(report.read_text())
