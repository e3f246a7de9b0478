"""Modules that a worker imports before its first task, and those that it imports later."""

from __future__ import annotations

import subprocess
import sys

LATE = {"boto3", "botocore", "httpx", "structlog", "rich", "re2", "pydantic_settings", "fastapi"}
PRINTS = "for stream in (sys.stdout, sys.stderr) * 3: print(chr(120) * 9000, file=stream, flush=True)"
LOADED = "print(*{name.partition('.')[0] for name in sys.modules})"


def loaded(program: str) -> set[str]:
    """Returns the top-level modules that a fresh interpreter has loaded after it has run the program."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, time, actors.host.preload\n{program}\n{LOADED}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_a_new_worker_first_loads_only_the_modules_of_a_first_call() -> None:
    modules = loaded("")
    assert "actors" in modules
    assert LATE & modules == set()


def test_an_idle_worker_has_loaded_everything() -> None:
    assert LATE - {"pydantic_settings", "fastapi", "rich"} <= loaded("actors.host.preload._later.join()")


def test_a_worker_whose_output_is_on_a_full_disk_goes_on() -> None:
    program = f"import sys, actors.host.preload\n{PRINTS}\nsys.exit(7)"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full, timeout=60)
    assert done.returncode == 7
