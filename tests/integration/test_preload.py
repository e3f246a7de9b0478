"""What a worker loads before it is given anything to do, and what it leaves for later."""

from __future__ import annotations

import subprocess
import sys

LATE = {"boto3", "botocore", "httpx", "structlog", "rich", "re2", "pydantic_settings", "fastapi"}
PRINTS = "for stream in (sys.stdout, sys.stderr) * 3: print(chr(120) * 9000, file=stream, flush=True)"
LOADED = "print(*{name.partition('.')[0] for name in sys.modules})"


def loaded(program: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded when it has run the program."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, time, actors.host.preload\n{program}\n{LOADED}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_a_worker_that_starts_for_somebody_who_waits_loads_what_a_first_call_needs_and_no_more() -> None:
    modules = loaded("")
    assert "actors" in modules
    assert LATE & modules == set()


def test_a_worker_that_waits_has_loaded_everything() -> None:
    assert LATE - {"pydantic_settings", "fastapi", "rich"} <= loaded("actors.host.preload._later.join()")


def test_a_worker_whose_log_is_on_a_full_disk_prints_and_goes_on() -> None:
    program = f"import sys, actors.host.preload\n{PRINTS}\nsys.exit(7)"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full, timeout=60)
    assert done.returncode == 7
