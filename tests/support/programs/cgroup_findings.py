"""Prints what the doctor finds out about control groups here."""

from __future__ import annotations

from pathlib import Path

from actors.node.doctor import _cgroup
from actors.node.surroundings import Surroundings

found = _cgroup(Surroundings.read(Path("/var/tmp")))
print([(one.name, one.ok, one.required, one.detail) for one in found])
