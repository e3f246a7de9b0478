"""Runs programs that join a Ray cluster and report what they found, each in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.service import PROJECT, clean_environment

_END_S = 60.0


def reported(script: Path, *args: object, home: Path, env: Mapping[str, str], timeout_s: float) -> Any:
    """Runs a program that must succeed. Returns the JSON document that it wrote to its first argument.

    Not to standard output, since Ray prints warnings there at any time.
    """
    report = home / f"{script.stem}.json"
    process = subprocess.Popen(
        [sys.executable, script, report, *map(str, args)],
        env=clean_environment(home, {**env, "PYTHONPATH": str(PROJECT)}),
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # on which it ends the cluster that it started
        said, _ = process.communicate(timeout=_END_S)
    assert process.returncode == 0, said[-4000:]
    return json.loads(report.read_text())
