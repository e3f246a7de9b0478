"""No key, presigned URL or path of the node is visible anywhere. Runs last, and searches all that the session has left.

Two exceptions are allowed: the operator's own `--data-dir`, and folders (never keys) in the arguments with which
rclone and Ray are started.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.store import list_all
from tests.acceptance.conftest import OTHER_KEY
from tests.acceptance.http_box import HttpBox
from tests.support.service import CommandLines, Service, eventually, files_below, read_or_empty, secrets_of

SMALL = 100_000  # bytes


@pytest.fixture(scope="module", autouse=True)
def main_flow(service: Service) -> Iterator[HttpBox]:
    """Makes sure that the session includes a backup, restores, failures, and a command with its own secret."""
    with service.client() as client, HttpBox(client, "searched").destroyed_at_the_end() as box:
        box.sh("head -c 40000000 /dev/urandom > large; touch file")
        handle = box.backup()
        box.restore(handle)
        box.restore(handle, dir="/app/copy", mode="copy")
        box.post("backup", dir="/etc")
        box.post("backup", dir="/workspace/missing")
        box.post("restore", id=handle["id"], dir="/workspace/file/below")
        box.get("/workspace/missing")
        client.get("/no/such/path")
        client.get("/ready", headers={"Authorization": "Bearer wrong"})
        yield box


def secrets(service: Service) -> dict[str, str]:
    return {**secrets_of(service), "the other tenant's key": OTHER_KEY}


def found_in(text: str, secrets: dict[str, str]) -> list[str]:
    return [name for name, secret in secrets.items() if secret in text]


def logs(service: Service) -> dict[Path, str]:
    """Returns every log of Ray and of our actors, and the output of `serve`."""
    files = [path for path in files_below(service.ray_folder) if "logs" in path.parts]
    return {path: read_or_empty(path).decode(errors="replace") for path in (*files, service.stdout, service.stderr)}


def test_no_process_of_the_service_ever_showed_a_secret_in_its_arguments(
    service: Service, command_lines: CommandLines
) -> None:
    before = command_lines.samples
    eventually(lambda: command_lines.samples > before)
    lines = {line.replace(b"\0", b" ").decode(errors="replace") for line in list(command_lines.seen)}

    assert len(lines) > 10
    assert any("rclone" in line for line in lines) and any("mksquashfs" in line for line in lines), lines
    assert {line: found for line in lines if (found := found_in(line, secrets(service)))} == {}


def test_no_tool_that_runs_for_a_sandbox_names_a_path_of_the_node(
    service: Service, command_lines: CommandLines
) -> None:
    lines = {line.replace(b"\0", b" ").decode(errors="replace") for line in list(command_lines.seen)}
    tools = {line for line in lines if any(tool in line for tool in ("bwrap", "mksquashfs", "unsquashfs", "tar --"))}

    assert tools
    assert [line for line in tools if str(service.data_dir) in line] == []


def test_no_process_but_serve_itself_has_a_secret_in_its_environment(
    service: Service, command_lines: CommandLines
) -> None:
    exposed = {
        pid: found
        for pid, environment in list(command_lines.environments.items())
        if pid != service.process.pid and (found := found_in(environment.decode(errors="replace"), secrets(service)))
    }
    known = {pid for pid in exposed if b"RCLONE" in command_lines.environments[pid].upper()}

    assert {pid: found for pid, found in exposed.items() if pid not in known} == {}


def test_no_log_holds_a_secret(service: Service) -> None:
    texts = logs(service)

    assert len(texts) > 5
    assert {path.name: found for path, text in texts.items() if (found := found_in(text, secrets(service)))} == {}


def test_holdfasts_own_log_lines_name_no_path_of_the_node(service: Service) -> None:
    lines = [line for text in logs(service).values() for line in text.splitlines() if line.startswith('{"')]
    own = [line for line in lines if _is_own(line)]

    assert own
    assert [line for line in own if str(service.data_dir) in line or str(service.home) in line] == []


def _is_own(line: str) -> bool:
    try:
        document = json.loads(line)
    except ValueError:
        return False
    return "event" in document and "timestamp" in document


def test_no_error_body_holds_a_secret_or_a_path_of_the_node(service: Service) -> None:
    assert len(service.error_bodies) >= 6
    for body in service.error_bodies:
        assert found_in(body, secrets(service)) == []
        for inner in (str(service.data_dir), str(service.home), str(service.ray_folder), "Traceback", "/root/"):
            assert inner not in body


def test_nothing_inside_a_sandbox_shows_a_secret_or_a_path_of_the_node(service: Service, main_flow: HttpBox) -> None:
    visible = main_flow.exec(
        "sh", "-c", "env; cat /proc/self/environ /proc/[0-9]*/environ /proc/[0-9]*/cmdline; ps -ef; "
        "ls -lR /etc /dev /run /var; readlink /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe; true"
    ).text  # fmt: skip

    assert "PATH=" in visible
    assert found_in(visible, secrets(service)) == []
    for outer in (str(service.data_dir), str(service.home), "R2_", "AWS_", "RAY_", "HOLDFAST_"):
        assert outer not in visible


def test_no_file_of_a_sandbox_or_of_the_bucket_holds_a_key(service: Service, main_flow: HttpBox) -> None:
    folder = service.data_dir / "node" / "boxes" / "default" / main_flow.id
    files = {path: content for path in files_below(folder) if len(content := read_or_empty(path)) < SMALL}
    store = service.store()
    objects = {found.key: store.get(found.key).data for found in list_all(store, "") if found.size_bytes < SMALL}

    assert [key for key in objects if key.endswith("meta.json")] and [key for key in objects if "state.json" in key]
    for content in (*files.values(), *objects.values()):
        text = content.decode(errors="replace")
        assert found_in(text, secrets(service)) == []
        assert str(service.data_dir) not in text
