"""The examples of the documents, run unchanged but for the port and the data folder, which are the test service's.

The blocks of a page are run from its top to its end: those of the shell in one shell, each one of Python as a program.
Where a transcript shows an output, the command has to print it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.support.examples import Block, blocks, pattern
from tests.support.service import PROJECT, Service, clean_environment

LIMIT_S = 600
SANDBOXES = ("user-123", "user-456", *(f"user-fork-{number}" for number in range(1, 7)))
STORE = "store.env"
_END = "\x1e"
"""Is printed after each command, to tell the outputs apart."""

RUN = [block for block in blocks() if block.language and block.reason_not_run is None]
PAGES = sorted({block.page for block in RUN})


@pytest.fixture(autouse=True)
def _no_sandbox_stays(client: httpx.Client) -> Iterator[None]:
    def delete() -> None:
        for name in SANDBOXES:
            client.delete(f"/v1/sandbox/{name}").raise_for_status()

    delete()
    yield
    delete()


@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run_from_its_top_to_its_end(
    page: str, service: Service, client: httpx.Client, tmp_path: Path
) -> None:
    of_page = [block for block in RUN if block.page == page]
    outputs = run(service, of_page, tmp_path)

    for command, shown, printed in zip(*zip(*steps(of_page), strict=True), outputs, strict=True):
        if shown:
            assert pattern(shown).fullmatch(printed), f"{command}printed {printed!r}, and not {shown!r}"


def test_the_rest_example_shows_its_file_and_forks(service: Service, client: httpx.Client, tmp_path: Path) -> None:
    printed = "".join(run(service, [only("docs/getting-started.md", "sh", "curl")], tmp_path))

    assert 'print("hello")' in printed
    assert '"success":true' in printed
    assert client.get("/v1/sandbox/user-456/file/workspace/app.py").text == 'print("hello")'


def test_the_python_example_shows_the_forks_files(service: Service, tmp_path: Path) -> None:
    assert "notes.txt" in "".join(run(service, [only("docs/getting-started.md", "python", "get_sandbox")], tmp_path))


def test_the_command_line_example_shows_its_file(service: Service, tmp_path: Path) -> None:
    assert "README.md" in "".join(run(service, [only("README.md", "sh", "holdfast cp")], tmp_path))


def test_each_of_s3s_own_tools_shows_the_backup(service: Service, client: httpx.Client, tmp_path: Path) -> None:
    made = client.post("/v1/sandbox/user-123/backup", json={"dir": "/workspace"}).raise_for_status().json()["id"]
    example = only("docs/guides/operating.md", "sh", STORE)
    tools = re.findall(r"^(python3|rclone|aws) ", example.text, flags=re.MULTILINE)
    assert tools == ["python3", "rclone", "aws"]

    printed = "".join(run(service, [example], tmp_path))

    assert printed.count(f"{made}/meta.json") == (2 if shutil.which("aws") else 1)
    assert re.match(r"[1-5]\n", printed)


def only(page: str, language: str, containing: str) -> Block:
    (found,) = (b for b in RUN if (b.page, b.language) == (page, language) and containing in b.text)
    return found


def steps(of_page: Sequence[Block]) -> Iterator[tuple[str, str]]:
    """Each command, as text for bash, and the output that the page shows for it."""
    for block in of_page:
        match block.language:
            case "console":
                yield from block.transcript
            case "python":
                yield f"python3 - <<'PYTHON'\n{block.text}PYTHON\n", ""
            case "sh":
                yield with_installed_tools(block.text), ""


def with_installed_tools(text: str) -> str:
    """The example with the path of `aws`, or without its line where it is not installed."""
    aws = shutil.which("aws")
    if aws is None and re.search(r"^aws ", text, flags=re.MULTILINE):
        print("aws is not installed: its line of the example is not run")
    return re.sub(r"^aws ", f"{aws} ", text, flags=re.MULTILINE) if aws else re.sub(r"(?m)^aws .*\n", "", text)


def run(service: Service, of_page: Sequence[Block], tmp_path: Path) -> list[str]:
    """Runs the blocks in one shell, which ends at the first error. Returns the output of each command."""
    script = "".join(f"{command}\nprintf '{_END}'\n" for command, _ in steps(of_page))
    key_file = service.home / "api_key"
    key_file.write_text(service.api_key)
    here = {
        "/var/lib/holdfast/secrets/api_key": str(key_file),
        "http://127.0.0.1:8484": service.url,
        "/var/lib/holdfast": str(service.data_dir),
    }
    script = re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], script)
    # A shell that has the store's keys has its own home, like an operator's: no process of the service may show them.
    home = tmp_path if STORE in script else service.home
    environment = clean_environment(home, {**service.client_env, "HOLDFAST_DATA_DIR": str(service.data_dir)})
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.split(_END)[:-1]
