"""Imported by a warm worker while nobody waits: what the first call to a sandbox would otherwise import and load."""

from __future__ import annotations

import actors.hosts
import actors.sandbox
import actors.service
import actors.upkeep  # noqa: F401
from storage.s3 import load_model

load_model()
