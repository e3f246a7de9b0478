"""What an actor writes into its log: one JSON object per line, with what belongs to the call."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import sys
from actors.logs import configure_logging, log, naming
configure_logging()
assert "structlog" not in sys.modules
with naming(sandbox="box", request_id="r"):
    with naming(sandbox="inner"):
        log.info("first", detail="two\\nlines")
    log.warning("second")
log.error("third", sandbox="told")
"""


def test_a_line_is_one_json_object_with_what_belongs_to_the_call() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    for line in lines:
        assert line.pop("timestamp").endswith("Z")
    assert lines == [
        {"event": "first", "level": "info", "detail": "two\nlines", "sandbox": "inner", "request_id": "r"},
        {"event": "second", "level": "warning", "sandbox": "box", "request_id": "r"},
        {"event": "third", "level": "error", "sandbox": "told"},
    ]
    assert done.stdout == ""


def test_a_log_that_cannot_be_written_keeps_nobody_from_anything() -> None:
    program = "from actors.logs import configure_logging, log; configure_logging(); log.error('full'); print('goes on')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, timeout=60)
    assert done.stdout == b"goes on\n"
