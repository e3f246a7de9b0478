"""Tests that systemd accepts the units, and that they give the service the time and the rights it needs."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.embedded.stop import STOP_S
from gateway.server import ANSWERING_S, GRACEFUL_S

SCRIPTS = Path(__file__).parents[3] / "scripts"
UNITS = sorted(SCRIPTS.glob("*.service"))


def parsed(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(SCRIPTS / name)
    return unit


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_each_unit(unit: Path, tmp_path: Path) -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("systemd-analyze is not installed: only the keys below are looked at")
    here = unit.read_text().replace("/opt/holdfast/.venv/bin/holdfast", sys.executable)
    (tmp_path / unit.name).write_text(here)

    ended = subprocess.run(
        [verifier, "verify", "--man=no", tmp_path / unit.name], capture_output=True, text=True, timeout=60, check=False
    )

    assert (ended.returncode, [line for line in ended.stderr.splitlines() if unit.name in line]) == (0, [])


def test_the_unit_of_one_machine_stops_in_order_and_restarts() -> None:
    service = parsed("holdfast.service")["Service"]

    assert service["ExecStart"] == "/opt/holdfast/.venv/bin/holdfast serve"
    assert service["Type"] == "exec"
    assert service["KillMode"] == "mixed", "its processes must not be told to end before it has closed its sandboxes"
    assert service["Delegate"] == "yes"
    assert service["Restart"] == "always"
    assert service["OOMPolicy"] == "continue"
    assert service["EnvironmentFile"] == "-/etc/holdfast/env", "it works without any settings"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_allows_a_stop_enough_time(unit: Path) -> None:
    assert GRACEFUL_S + ANSWERING_S + STOP_S <= 30
    assert int(parsed(unit.name)["Service"]["TimeoutStopSec"]) > 30
