"""Demo of the main job on real input: checkpoint a directory, wreck it, roll back, and fork the checkpoint.

It starts `holdfast serve` on a folder of its own and talks to it over HTTP as any client would. The input is the
Python environment in which this script runs: some twenty thousand files.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import httpx
from rich.console import Console

START_LIMIT_S = 120
BLOCK_BYTES = 1024 * 1024
MANIFEST = (
    "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16; find . -type f | wc -l"
)

T = TypeVar("T")
console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Runs every step and prints its time. Returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as folder:
        data_dir = Path(folder)
        with step("start the service (Ray, S3 server, gateway)"):
            service = start(data_dir)
        try:
            return run(service.api)
        finally:
            with step("stop the service"):
                service.stop()


def run(api: httpx.Client) -> int:
    """Runs the steps between start and stop. Returns the exit status."""
    site_packages = Path(next(path for path in sys.path if path.endswith("site-packages")))
    with step("make a sandbox"):
        box = api.post("/v1/sandbox").raise_for_status().json()["id"]
    with step("send files into it (a tar of this Python environment)"):
        api.post(f"/v1/sandbox/{box}/hydrate", content=tar_of(site_packages)).raise_for_status()
    with step("run a command: list and hash every file") as note:
        before = execute(api, box, MANIFEST)
        note(f"{before.split()[1]} files")
    with step("back /workspace up"):
        body = {"dir": "/workspace", "name": "before the risky step", "ttl": 3600}
        backup = api.post(f"/v1/sandbox/{box}/backup", json=body).raise_for_status().json()
    with step("look at the backup") as note:
        info = api.get(f"/v1/backup/{backup['id']}").raise_for_status().json()
        note(
            f"{info['source_bytes'] / 1e6:.0f} MB in {info['files']} files -> {info['size_bytes'] / 1e6:.0f} MB archive"
        )
    with step("wreck it: rm -rf"):
        execute(api, box, "rm -rf ./* ; echo gone > wreck")
    with step("restore"):
        api.post(f"/v1/sandbox/{box}/restore", json=backup).raise_for_status()
    with step("check: every file is back, bit for bit") as note:
        after = execute(api, box, MANIFEST)
        note("identical" if after == before else "DIFFERENT")
    with step("fork the checkpoint into a second sandbox"):
        fork = api.post("/v1/sandbox").raise_for_status().json()["id"]
        api.post(f"/v1/sandbox/{fork}/restore", json=backup).raise_for_status()
    with step("change the fork; the first sandbox does not see it") as note:
        execute(api, fork, "echo mine > only-here")
        alone = execute(api, box, "test -e only-here && echo shared || echo separate")
        note(alone)
    return 0 if after == before and alone == "separate" else 1


class Service:
    """A running `holdfast serve` and a client for it."""

    def __init__(self, process: subprocess.Popen[str], url: str, key: str) -> None:
        self.api = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=600, trust_env=False)
        self._process = process

    def stop(self) -> None:
        """Stops the service, and waits for its end."""
        self.api.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


def start(data_dir: Path, **settings: str) -> Service:
    """Starts the service on a free port; returns when it is ready. `settings` go into its environment."""
    log = (data_dir / "serve.log").open("w")
    command = [str(Path(sys.executable).with_name("holdfast")), "serve", "--port", "0", "--data-dir", str(data_dir)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("R2_", "BACKUP_", "RAY_"))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment | settings)
    try:
        url = listening_url(process, data_dir)
        service = Service(process, url, (data_dir / "secrets" / "api_key").read_text())
        wait_for(lambda: is_ready(service.api))
    except BaseException:
        process.terminate()
        process.wait(60)
        raise
    return service


def listening_url(process: subprocess.Popen[str], data_dir: Path) -> str:
    """The URL that the service prints once it is up."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("holdfast listens on "):
            return line.split()[3]
    raise SystemExit("the service did not start:\n" + (data_dir / "serve.log").read_text()[-2000:])


def is_ready(api: httpx.Client) -> bool:
    """Tells whether a call would succeed now."""
    try:
        return api.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until the condition is true; exits after `START_LIMIT_S`."""
    deadline = time.monotonic() + START_LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the service did not become ready")
        time.sleep(0.05)


def execute(api: httpx.Client, box: str, script: str) -> str:
    """Runs a shell script in /workspace of a sandbox; returns what it printed."""
    output = b""
    body = {"argv": ["sh", "-c", script]}
    with api.stream("POST", f"/v1/sandbox/{box}/exec", json=body) as response:
        response.raise_for_status()
        for event, data in events(response):
            if event == "stdout":
                output += base64.b64decode(data)
            elif event == "error" or (event == "exit" and json.loads(data)["exit_code"] != 0):
                raise SystemExit(f"the command failed: {event} {data}")
    return output.decode().strip()


def events(response: httpx.Response) -> Iterator[tuple[str, str]]:
    """Yields the events of a text/event-stream: name and data."""
    event = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield event, line.removeprefix("data: ")


def tar_of(folder: Path) -> Iterator[bytes]:
    """Yields a tar archive of a folder, piece by piece."""
    with subprocess.Popen(["tar", "-C", str(folder), "-cf", "-", "."], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        yield from blocks(tar.stdout)


def blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Yields the content of a stream, a MiB at a time."""
    while block := stream.read(BLOCK_BYTES):
        yield block


@contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Prints the block as a step, with the time that it took, and its note."""
    notes: list[str] = []
    began = time.monotonic()
    yield notes.append
    note = f"  [dim]{notes[0]}[/dim]" if notes else ""
    console.print(f"[green]✓[/green] {title:<58} {time.monotonic() - began:7.2f} s{note}")


if __name__ == "__main__":
    sys.exit(main())
