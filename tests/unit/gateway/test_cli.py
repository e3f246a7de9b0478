from __future__ import annotations

import json
import os
import posixpath
import signal
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest

from actors.client import Sandbox
from actors.errors import BackupCreateError, ExecStoppedError, InvalidRequestError, OperationCancelledError
from actors.models import (
    BackupFile,
    BackupOptions,
    ChangeKind,
    DirectoryStatus,
    Exit,
    FileChange,
    FileKind,
    FileState,
    Output,
    RecoveredDirectory,
    RestoreMode,
    RestoreOptions,
    SandboxEvent,
)
from gateway.cli.app import COMMANDS, main
from gateway.cli.arguments import Remote, remote
from gateway.cli.connection import RayDoors
from gateway.cli.output import printable
from gateway.client_env import read_client_env
from tests.unit.gateway.memory_cluster import NOW, MemoryCluster, MemoryDoors, MemorySandbox

Capture = pytest.CaptureFixture[str]
FORGOTTEN = DirectoryStatus.FORGOTTEN


@pytest.fixture
def cluster() -> MemoryCluster:
    return MemoryCluster()


@pytest.fixture
def box(cluster: MemoryCluster) -> MemorySandbox:
    return cluster.sandbox("default", "box")


def run(cluster: MemoryCluster, *argv: str) -> int:
    return main(argv, doors=MemoryDoors(cluster))


def test_rays_output_on_standard_output_does_not_mix_with_the_results(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.files["/workspace/file"] = b"content"
    doors = MemoryDoors(cluster)

    def noisy(sandbox_id: str, *, tenant: str, address: str | None) -> Sandbox:
        print("(raylet) WARNING: 18 PYTHON worker processes have been started")
        return doors.sandbox(sandbox_id, tenant=tenant, address=address, data_dir=None)

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored at the end
    monkeypatch.setattr("actors.client.get_sandbox", noisy)
    assert main(["cp", "box:/workspace/file", "-"], doors=RayDoors()) == 0
    out, err = capsys.readouterr()
    assert out == "content"
    assert "(raylet) WARNING" in err


def test_backup_passes_on_every_option_and_prints_the_id(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture
) -> None:
    options = [
        "--name",
        "n",
        "--ttl",
        "60",
        "--exclude",
        "*.o",
        "--exclude",
        "t/",
        "--gitignore",
        "--full",
        "--compression",
        "zstd:3",
    ]
    assert run(cluster, "backup", "box", "/workspace", *options) == 0
    [asked] = box.asked
    assert isinstance(asked, BackupOptions)
    assert (asked.name, asked.ttl, asked.excludes, asked.gitignore, asked.full) == ("n", 60, ["*.o", "t/"], True, True)
    assert (asked.compression.format, asked.compression.level) == ("zstd", 3)
    assert capsys.readouterr().out.strip() in cluster.tenant("default").backups


def test_an_incremental_backup_is_listed_with_its_archives_and_flattened(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture
) -> None:
    first, second = (box.create_backup(BackupOptions(dir="/workspace", name="n")).result().id for _ in range(2))
    assert run(cluster, "list", "box") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {row[0]: (row[3], *row[5:]) for row in rows} == {first: ("1", "n", "1", "1"), second: ("1", "n", "2", "2")}
    assert run(cluster, "flatten", second, first) == 0
    made, same = capsys.readouterr().out.splitlines()
    assert same == first and made not in (first, second)
    assert run(cluster, "inspect", made) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["size_bytes"], shown["total_bytes"], shown["depth"]) == (2, 2, 1)
    assert run(cluster, "flatten", "00000000-0000-4000-8000-000000000000", "--json") == 1
    assert json.loads(capsys.readouterr().out)["code"] == "BACKUP_NOT_FOUND"


def test_the_files_of_a_backup_are_listed_page_by_page(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture
) -> None:
    backup = box.create_backup(BackupOptions(dir="/workspace")).result().id
    link = FileState(kind=FileKind.SYMLINK, size_bytes=0, mode=0o777, modified_at=NOW, target="x\n")
    tenant = cluster.tenant("default")
    tenant.listing = [
        BackupFile(path="/d/a\udcff", kind=FileKind.FILE, size_bytes=7, mode=0o640, modified_at=NOW),
        BackupFile(path="/d/b", **link.__dict__),
    ]
    assert run(cluster, "ls", f"{backup}:d") == 0
    at = "2026-01-02T03:04:05+00:00"
    assert capsys.readouterr().out == f"-rw-r-----\t7\t{at}\ta\\udcff\nlrwxrwxrwx\t0\t{at}\tb -> x\\n\n"
    assert tenant.asked == [(backup, "/d", False, 1000, None), (backup, "/d", False, 1000, "1")]
    assert run(cluster, "ls", "-r", backup, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [file["path"] for file in printed["files"]] == ["/d/a\udcff", "/d/b"]
    assert (printed["source"], tenant.asked[-1]) == ("listing", (backup, "/", True, 1000, "1"))
    assert run(cluster, "ls", f"{backup}:/missing", "--json") == 1
    assert json.loads(capsys.readouterr().out)["code"] == "FILE_NOT_FOUND"


def test_a_sandbox_whose_name_looks_like_a_backups_id_is_listed(cluster: MemoryCluster, capsys: Capture) -> None:
    name = "6c1f8e4e-0000-4000-8000-000000000001"
    cluster.sandbox("default", name).files["/workspace/x"] = b"1"
    assert run(cluster, "ls", name) == 0
    assert capsys.readouterr().out.endswith("\tx\n")
    assert run(cluster, "ls", "-r", name, "--json") == 1
    assert json.loads(capsys.readouterr().out)["code"] == "INVALID_REQUEST"


def test_the_changes_since_a_backup_are_shown_page_by_page(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture
) -> None:
    first, second = (box.create_backup(BackupOptions(dir="/workspace")).result().id for _ in range(2))
    cluster.tenant("default").changes = [
        FileChange(path="/a", change=ChangeKind.CHANGED, differs=["mode", "modified_at"]),
        FileChange(path="/b", change=ChangeKind.REMOVED),
    ]
    assert run(cluster, "diff", first, second) == 0
    out, err = capsys.readouterr()
    assert out == "changed\t/a\tmode,modified_at\nremoved\t/b\t\n"
    assert "same size and time" in err and "left files out" in err
    for target, asked in (("box", None), ("box:src", "/workspace/src"), ("box:/app", "/app")):
        assert run(cluster, "diff", first, target, "--json") == 0
        printed = json.loads(capsys.readouterr().out)
        assert ([row["path"] for row in printed["changes"]], printed["compared_by"]) == (["/a", "/b"], "size_and_time")
        assert box.asked[-1] == (first, asked, 1000, "1")
    assert run(cluster, "diff", "box", first, "--json") == 1
    assert json.loads(capsys.readouterr().out)["code"] == "INVALID_REQUEST"


def test_restore_asks_the_service_for_the_backups_directory(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture
) -> None:
    assert run(cluster, "backup", "box", "/workspace/a", "--json") == 0
    handle = json.loads(capsys.readouterr().out)
    assert run(cluster, "restore", "fork", handle["id"], "--mode", "copy", "--json") == 0
    [asked] = cluster.sandbox("default", "fork").asked
    assert asked == RestoreOptions(id=handle["id"], dir="/workspace/a", mode=RestoreMode.COPY)
    assert json.loads(capsys.readouterr().out) == {"success": True, **handle}
    assert run(cluster, "restore", "fork", handle["id"], "/home/b") == 0


def test_fork_prints_what_was_made_and_fails_if_a_part_was_not(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture
) -> None:
    assert run(cluster, "backup", "box", "/workspace/a", "--json") == 0
    backup_id = json.loads(capsys.readouterr().out)["id"]
    assert run(cluster, "fork", backup_id, "--count", "2", "--key", "k") == 0
    assert capsys.readouterr().out == "fork-1\nfork-2\n"
    assert cluster.tenant("default").fork_keys == ["k"]
    assert run(cluster, "fork", backup_id, "one", "bad-one") == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("one\n", "note: bad-one was not made: The disk is full.\n")
    assert run(cluster, "fork", backup_id, "bad-one", "--json") == 1
    assert json.loads(capsys.readouterr().out)["forks"][0]["error"]["code"] == "NO_SPACE"


@pytest.mark.parametrize(
    ("argv", "code", "status"),
    [
        (["fork", "6c1f8e4e-0000-4000-8000-000000000001", "--json"], "INVALID_BACKUP_CONFIG", 1),
        (["backup", "box", "relative", "--json"], "INVALID_BACKUP_CONFIG", 1),
        (["backup", "box", "/workspace", "--ttl", "nan", "--json"], "INVALID_BACKUP_CONFIG", 1),
        (["backup", "box", "/workspace", "--compression", "lz4:x", "--json"], "INVALID_BACKUP_CONFIG", 1),
        (["backup", "BOX", "/workspace", "--json"], "INVALID_REQUEST", 1),
        (["restore", "box", "not-a-uuid", "--json"], "INVALID_BACKUP_CONFIG", 1),
        (["inspect", "unused", "--json"], "SANDBOX_NOT_FOUND", 1),
        (["inspect", "6c1f8e4e-0000-4000-8000-000000000001", "--tenant", "other", "--json"], "SANDBOX_NOT_FOUND", 1),
        (["cp", "a", "b", "--json"], "INVALID_REQUEST", 1),
        (["cp", "/does/not/exist", "box:/workspace/a", "--json"], "INVALID_REQUEST", 1),
        (["exec", "box", "--json", "--env", "novalue", "--", "ls"], "INVALID_REQUEST", 1),
        (["backup", "box", "--json"], "USAGE", 2),
        (["delete", "--json"], "USAGE", 2),
        (["lifecycle", "--expire-days", "0", "--json"], "USAGE", 2),
        (["lifecycle", "--expire-days", str(10**309), "--json"], "USAGE", 2),
        (["lifecycle", "--expire-days", "9" * 5000, "--json"], "USAGE", 2),
        (["events", "box", "--limit", str(10**309), "--json"], "USAGE", 2),
        (["exec", "box", "--timeout", "nan", "--json", "--", "ls"], "USAGE", 2),
        (["exec", "box", "--timeout", "inf", "--json", "--", "ls"], "INVALID_REQUEST", 1),
        (["exec", "box", "--timeout", "1e309", "--json", "--", "ls"], "INVALID_REQUEST", 1),
        (["exec", "box", "--timeout", "1e300", "--json", "--", "ls"], "INVALID_REQUEST", 1),
        (["exec", "box", "--json", "--", ""], "INVALID_REQUEST", 1),
        (["exec", "box", "--json", "--", "ls", "x" * 131_072], "INVALID_REQUEST", 1),
        (["backup", "box", "/workspace", "--ttl", "1e309", "--json"], "INVALID_BACKUP_CONFIG", 1),
        (["backup", "box", "/workspace", "--compression", f"zstd:{10**309}", "--json"], "INVALID_BACKUP_CONFIG", 1),
        (["backup", "box", "/workspace", "--compression", f"zstd:{'9' * 5000}", "--json"], "INVALID_BACKUP_CONFIG", 1),
        (["--json"], "USAGE", 2),
        (["no-such-command", "--json"], "USAGE", 2),
    ],
)
def test_with_json_an_error_is_one_document(
    cluster: MemoryCluster, capsys: Capture, argv: list[str], code: str, status: int
) -> None:
    assert run(cluster, *argv) == status
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["code"], captured.err) == (code, "")
    assert {"code", "error", "context"} <= set(document)


def test_an_error_for_people_is_two_lines(cluster: MemoryCluster, box: MemorySandbox, capsys: Capture) -> None:
    box.failure = BackupCreateError("It \x1b[31mfailed.", hint="Look.")
    assert run(cluster, "backup", "box", "/workspace") == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: It \\x1b[31mfailed.\nhint: Look.\n")


def test_exec_passes_on_output_and_exit_status(
    cluster: MemoryCluster, box: MemorySandbox, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    box.script = [Output(stream="stdout", data=b"o\xff"), Output(stream="stderr", data=b"e"), Exit(exit_code=7)]
    argv = ["exec", "box", "--cwd", "/tmp", "--env", "A=b=c", "--timeout", "1.5", "--", "sh", "-c", "--json"]
    assert run(cluster, *argv) == 7
    assert capfdbinary.readouterr() == (b"o\xff", b"e")
    [asked] = box.asked
    assert (asked.argv, asked.cwd, asked.env, asked.timeout_ms) == (["sh", "-c", "--json"], "/tmp", {"A": "b=c"}, 1500)


def test_exec_with_json_prints_one_document(cluster: MemoryCluster, box: MemorySandbox, capsys: Capture) -> None:
    box.script = [Output(stream="stdout", data=b"o\xff"), Exit(exit_code=7)]
    assert run(cluster, "exec", "box", "--json", "--", "ls") == 7
    assert json.loads(capsys.readouterr().out) == {"exit_code": 7, "stdout": "b/8=", "stderr": ""}
    box.script = [ExecStoppedError("Stopped.")]
    assert run(cluster, "exec", "box", "--json", "--", "ls") == 1
    assert json.loads(capsys.readouterr().out)["code"] == "EXEC_STOPPED"


def test_cp_copies_into_a_sandbox_and_out_of_it(cluster: MemoryCluster, box: MemorySandbox, tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"x" * 3_000_000)
    assert run(cluster, "cp", str(source), "box:/workspace/dir/") == 0
    assert [len(block) for block in box.uploads[0].blocks] == [1_048_576, 1_048_576, 902_848]
    assert run(cluster, "cp", "box:dir/a", str(tmp_path / "b")) == 0
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert run(cluster, "cp", "box:/workspace/missing", str(tmp_path / "b")) == 1
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("mode", [0o755, 0o600, 0o444, 0o777])
def test_cp_out_of_a_sandbox_keeps_the_mode(
    cluster: MemoryCluster, box: MemorySandbox, tmp_path: Path, mode: int
) -> None:
    box.files["/workspace/tool"], box.modes["/workspace/tool"] = b"#!/bin/sh", mode
    (tmp_path / "tool").write_bytes(b"old")
    assert run(cluster, "cp", "box:tool", str(tmp_path)) == 0
    assert (tmp_path / "tool").read_bytes() == b"#!/bin/sh"
    assert (tmp_path / "tool").stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("target", ["box:/workspace", "box:", "box:/workspace/", "box:."])
def test_cp_into_a_directory_keeps_the_name(
    cluster: MemoryCluster, box: MemorySandbox, tmp_path: Path, target: str
) -> None:
    (tmp_path / "a\udcff").write_bytes(b"x")
    assert run(cluster, "cp", str(tmp_path / "a\udcff"), target) == 0
    assert {posixpath.normpath(path) for path in box.files} == {"/workspace/a\udcff"}


def test_cp_writes_to_the_target_of_a_local_link(cluster: MemoryCluster, box: MemorySandbox, tmp_path: Path) -> None:
    box.files["/workspace/a"] = b"new"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("folder/file")
    (tmp_path / "dangling").symlink_to("none/file")
    for target in ("link", "dangling"):
        assert run(cluster, "cp", "box:a", str(tmp_path / target)) == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "file").read_bytes() == b"new"
    assert (tmp_path / "dangling").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dangling", "file", "folder", "link"]


def test_the_error_of_cp_names_the_missing_local_directory(
    cluster: MemoryCluster, box: MemorySandbox, tmp_path: Path, capsys: Capture
) -> None:
    box.files["/workspace/a"] = b"x"
    for target in ("none/x", "none/"):
        assert run(cluster, "cp", "box:a", f"{tmp_path}/{target}") == 1
        assert f"{tmp_path}/none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_cp_of_a_stream_needs_a_name(cluster: MemoryCluster, box: MemorySandbox, capsys: Capture) -> None:
    assert run(cluster, "cp", "-", "box:/workspace") == 1
    assert "needs a name" in capsys.readouterr().err


def test_ls_and_list_print_tab_separated_rows_into_a_pipe(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture
) -> None:
    box.files["/workspace/a\x1b\udcff"] = b"123"
    assert run(cluster, "ls", "box") == 0
    assert capsys.readouterr().out.split("\t") == [
        "-rw-r--r--",
        "3",
        "2026-01-02T03:04:05+00:00",
        "a\\x1b\\udcff\n",
    ]
    assert run(cluster, "list") == 0
    assert capsys.readouterr().out == "box\tasleep\n"
    assert run(cluster, "list", "box", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"backups": []}
    assert run(cluster, "ls", "box", "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["name"] == "a\x1b\udcff"


def test_delete_takes_a_sandbox_or_a_backup(cluster: MemoryCluster, box: MemorySandbox, capsys: Capture) -> None:
    assert run(cluster, "backup", "box", "/workspace") == 0
    backup_id = capsys.readouterr().out.strip()
    assert run(cluster, "delete", "box", "--yes") == 0
    assert "box" not in cluster.tenant("default").sandboxes
    assert run(cluster, "delete", "--backup", backup_id, "--json") == 0
    assert cluster.tenant("default").backups == {}
    assert run(cluster, "gc", "--dry-run") == 0


def test_an_interrupt_cancels_the_backup_on_the_server(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture
) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def back_up() -> None:
        begun.set()
        assert cancelled.wait(60)

    box.while_backing_up = back_up
    box.on_cancel = cancelled.set
    box.failure = OperationCancelledError("Cancelled.")

    def interrupt() -> None:
        assert begun.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert run(cluster, "backup", "box", "/workspace") == 1
    assert cancelled.is_set()
    assert "error: Cancelled." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("box:/a", Remote("box", "/a")),
        ("box:a", Remote("box", "/workspace/a")),
        ("box:", Remote("box", "/workspace")),
        ("./box:/a", None),
        ("file", None),
        ("-", None),
    ],
)
def test_a_remote_path_is_told_apart_from_a_local_one(text: str, expected: Remote | None) -> None:
    assert remote(text) == expected


def test_client_env_sets_only_unset_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client.env").write_text("RAY_ADDRESS=a:1\nRAY_AUTH_MODE=token\nPATH=/evil\n")
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    path = os.environ["PATH"]
    (tmp_path / "empty").mkdir()
    read_client_env(tmp_path / "empty")
    assert "RAY_ADDRESS" not in os.environ
    read_client_env(tmp_path)
    assert (os.environ["RAY_ADDRESS"], os.environ["RAY_AUTH_MODE"], os.environ["PATH"]) == ("a:1", "disabled", path)


def test_the_error_for_a_missing_data_directory_names_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="none is no directory"):
        read_client_env(tmp_path / "none")


def test_client_env_of_another_cluster_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client.env").write_text("RAY_ADDRESS=a:1\nRAY_AUTH_TOKEN_PATH=/token\n")
    monkeypatch.setenv("RAY_ADDRESS", "b:2")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    read_client_env(tmp_path)
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    monkeypatch.setenv("RAY_ADDRESS", "a:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    read_client_env(tmp_path)
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == "/token"


def test_printable_escapes_terminal_control_characters() -> None:
    assert printable("é a\n\x9b\udc80") == "é a\\n\\x9b\\udc80"


def test_a_wrong_setting_is_reported_as_an_invalid_request(
    cluster: MemoryCluster, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_PORT", "secret-value")
    assert run(cluster, "doctor", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["code"] == "INVALID_REQUEST"
    assert "port" in document["error"].lower()
    assert "secret-value" not in str(document)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_shows_the_beginning_of_each_ones_help(
    cluster: MemoryCluster, capsys: Capture, name: str
) -> None:
    module, function, line = COMMANDS[name]
    documented = getattr(import_module(module), function).__doc__
    assert documented.startswith(line.rstrip("."))
    assert run(cluster, name, "--help") == 0
    assert "Usage: holdfast " + name in capsys.readouterr().out


def test_help_does_not_import_ray_or_a_web_server() -> None:
    probe = (
        "import sys; from gateway.cli.app import main; main(['--help']); "
        "print([m for m in ('ray', 'fastapi', 'uvicorn', 'boto3', 'pydantic') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_events_prints_rows_newest_first(cluster: MemoryCluster, box: MemorySandbox, capsys: Capture) -> None:
    assert run(cluster, "events", "box", "--json") == 1
    assert json.loads(capsys.readouterr().out)["code"] == "SANDBOX_NOT_FOUND"
    box.used = True
    box.happened = [SandboxEvent(kind="created", at=NOW), SandboxEvent(kind="slept", at=NOW, dir="/app", node="n")]
    assert run(cluster, "events", "box") == 0
    at = "2026-01-02T03:04:05+00:00"
    assert capsys.readouterr().out == f"{at}\tslept\t/app\t\tn\n{at}\tcreated\t\t\t\n"
    assert run(cluster, "events", "box", "--limit", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "events": [{"kind": "slept", "at": "2026-01-02T03:04:05Z", "dir": "/app", "node": "n"}]
    }


def test_label_sets_removes_and_shows_labels(cluster: MemoryCluster, box: MemorySandbox, capsys: Capture) -> None:
    assert run(cluster, "label", "box", "stage=dev", "team/owner=a=b", "empty=") == 0
    assert capsys.readouterr().out == "empty\t\nstage\tdev\nteam/owner\ta=b\n"
    assert run(cluster, "label", "box", "stage=prod", "team/owner-", "missing-", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"labels": {"empty": "", "stage": "prod"}}
    assert run(cluster, "label", "box") == 0
    assert capsys.readouterr().out == "empty\t\nstage\tprod\n"
    assert run(cluster, "label", "box", "stage", "--json") == 2
    assert box.labels == {"empty": "", "stage": "prod"}


def test_forget_names_the_directories_and_their_backups(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture
) -> None:
    box.missing = [
        RecoveredDirectory(dir=name, backup_id="b", taken_at=NOW, error="BACKUP_EXPIRED", status=FORGOTTEN)
        for name in ("/app", "/workspace")
    ]
    assert run(cluster, "forget", "box", "/app", "/workspace") == 0
    assert capsys.readouterr().out == "".join(
        f"gave up {name}: backup b (BACKUP_EXPIRED)\n" for name in ("/app", "/workspace")
    )
    assert run(cluster, "forget", "box", "/app", "--json") == 0
    assert [row["dir"] for row in json.loads(capsys.readouterr().out)["forgotten"]] == ["/app"]
    assert run(cluster, "forget", "box", "/tmp", "--json") == 1
    assert json.loads(capsys.readouterr().out)["code"] == "INVALID_REQUEST"
    assert run(cluster, "forget", "box") == 2


def test_retention_changes_what_is_given_and_shows_the_rest(
    cluster: MemoryCluster, box: MemorySandbox, capsys: Capture
) -> None:
    made = []
    for _ in range(2):
        assert run(cluster, "backup", "box", "/workspace") == 0
        made.append(capsys.readouterr().out.strip())
    assert run(cluster, "retention", "box") == 0
    assert capsys.readouterr().out == "all backups are kept until they expire\n"
    assert run(cluster, "retention", "box", "--keep-last", "1", "--pin", made[0]) == 0
    assert run(cluster, "retention", "box", "--keep-daily", "7", "--unpin", made[0], "--pin", made[1]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == ["keep last: 1", "keep daily: 7", f"pinned: {made[1]}"]
    assert run(cluster, "retention", "box", "--keep-last", "1", "--dry-run") == 0
    assert [line.split("\t")[::3] for line in capsys.readouterr().out.splitlines()] == [
        [made[0], "last"],
        [made[1], "would be deleted"],
    ]
    assert run(cluster, "retention", "box", "--apply", "--json") == 0
    assert json.loads(capsys.readouterr().out)["deleted"][0]["id"] == made[1]
    del cluster.tenant("default").backups[made[1]]
    assert run(cluster, "retention", "box", "--apply") == 0
    assert f"no such backup: {made[1]}" in capsys.readouterr().err
    assert run(cluster, "retention", "box", "--off", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"pinned": []}
    for wrong in (["--off", "--keep-last", "1"], ["--dry-run", "--apply"]):
        assert run(cluster, "retention", "box", *wrong) == 2
    assert run(cluster, "retention", "box", "--keep-last", "0", "--json") == 1
    assert json.loads(capsys.readouterr().out)["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize("module", sorted({module for module, _, _ in COMMANDS.values()}))
def test_no_command_loads_ray_before_its_settings_are_in_the_environment(module: str) -> None:
    """Ray reads them as it is loaded: the token of the cluster, for one, without which no call is answered."""
    code = f"import sys, {module}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
