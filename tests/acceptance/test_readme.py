"""The README's examples, run unchanged but for the port and the data folder, which are those of the test's service."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.service import PROJECT, Service, clean_environment

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
LIMIT_S = 120


def runs(service: Service, argv: list[str], text: str, *, home: Path | None = None) -> str:
    key_file = service.home / "api_key"
    key_file.write_text(service.api_key)
    here = {
        "/var/lib/holdfast/secrets/api_key": str(key_file),
        "http://127.0.0.1:8484": service.url,
        "/var/lib/holdfast": str(service.data_dir),
    }
    text = re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], text)
    left = dict(line.split("=", 1) for line in (service.data_dir / "client.env").read_text().splitlines())
    environment = clean_environment(home or service.home, {**left, "HOLDFAST_DATA_DIR": str(service.data_dir)})
    ended = subprocess.run(
        [*argv, text], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(autouse=True)
def _no_sandbox_stays(client: httpx.Client) -> None:
    for name in ("user-123", "user-456"):
        client.delete(f"/v1/sandbox/{name}").raise_for_status()


def block(language: str, containing: str) -> str:
    found = [text for kind, text in BLOCKS if kind == language and containing in text]
    assert len(found) == 1
    return str(found[0])


def test_the_curl_example_runs(service: Service, client: httpx.Client) -> None:
    printed = runs(service, ["bash", "-euc"], block("sh", "curl"))
    assert 'print("hello")' in printed
    assert '"success":true' in printed
    assert client.get("/v1/sandbox/user-456/file/workspace/app.py").text == 'print("hello")'


def test_the_python_example_runs(service: Service) -> None:
    assert "notes.txt" in runs(service, [sys.executable, "-c"], block("python", "get_sandbox"))


def test_the_command_line_example_runs(service: Service) -> None:
    assert "README.md" in runs(service, ["bash", "-euc"], block("sh", "holdfast cp"))


def test_the_example_of_s3s_own_tools_runs(service: Service, client: httpx.Client, tmp_path: Path) -> None:
    made = client.post("/v1/sandbox/user-123/backup", json={"dir": "/workspace"}).raise_for_status().json()["id"]
    text, tools = block("sh", "store.env"), ["python3", "rclone", "aws"]
    aws = shutil.which("aws")
    if aws is None:
        print("aws is not installed: its line of the example is not run")
        text, tools = re.sub(r"^aws .*\n", "", text, flags=re.MULTILINE), tools[:2]
    else:
        text = re.sub(r"^aws ", f"{aws} ", text, flags=re.MULTILINE)
    assert re.findall(r"^(python3|rclone|\S*aws) ", text, flags=re.MULTILINE)[:2] == tools[:2]
    # It has its own home, like an operator's shell: it has the store's keys, which no process of the service may show.
    printed = runs(service, ["bash", "-euc"], text, home=tmp_path)
    assert printed.count(f"{made}/meta.json") == len(tools) - 1
    assert re.match(r"[1-5]\n", printed)


def test_every_example_is_run_by_a_test() -> None:
    assert len(BLOCKS) == 4
