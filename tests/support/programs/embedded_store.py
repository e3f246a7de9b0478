"""Starts an embedded store, prints its pid, and waits to be killed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.support.s3 import embedded_s3

with embedded_s3(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    signal.pause()
