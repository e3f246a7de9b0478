"""The installed command `holdfast` against a running service, as a person and as a machine use it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from tests.acceptance.http_box import HttpBox
from tests.support.service import COMMAND_S, HOLDFAST, Service, clean_environment

SAID_BY_RAY = re.compile(rb"^(\x1b\[\d+m)?(\((raylet|autoscaler|pid)|\[20\d\d-).*\n", re.MULTILINE)
COMMANDS = [
    "serve",
    "exec",
    "cp",
    "ls",
    "backup",
    "restore",
    "forget",
    "adopt",
    "flatten",
    "list",
    "inspect",
    "events",
    "label",
    "retention",
    "delete",
    "gc",
    "lifecycle",
    "doctor",
]


@pytest.fixture
def cli(service: Service) -> Cli:
    return Cli(service)


class Cli:
    """Runs the command in its own process; it finds the service by its data folder."""

    def __init__(self, service: Service) -> None:
        self._env = clean_environment(service.home, {"HOLDFAST_DATA_DIR": str(service.data_dir)})
        self._cwd = service.home

    def run(self, *argv: str, stdin: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.CompletedProcess[bytes]:
        """Runs the command to its end; Ray's messages about the cluster are removed from its standard error."""
        done = subprocess.run(
            [HOLDFAST, *argv],
            env=self._env,
            cwd=self._cwd,
            stdin=stdin,
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
        )
        done.stderr = SAID_BY_RAY.sub(b"", done.stderr)
        return done

    def json(self, *argv: str, status: int = 0) -> dict[str, Any]:
        """Returns the single document that a command with --json prints."""
        done = self.run(*argv, "--json")
        assert done.returncode == status, done
        document: dict[str, Any] = json.loads(done.stdout)
        assert done.stdout.count(b"\n") == 1
        assert b"Traceback" not in done.stderr
        return document

    def on_a_terminal(self, argv: Sequence[str]) -> tuple[int, bytes]:
        """Runs a command on a terminal; returns its status and everything that it drew."""
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [HOLDFAST, *argv], env={**self._env, "TERM": "xterm"}, cwd=self._cwd,
            stdin=terminal, stdout=terminal, stderr=terminal,
        )  # fmt: skip
        os.close(terminal)
        drawn, deadline = b"", time.monotonic() + COMMAND_S
        try:
            while time.monotonic() < deadline:
                if select.select([controller], [], [], 1)[0]:
                    try:
                        drawn += os.read(controller, 65_536)
                    except OSError:  # the other side is closed
                        break
        finally:
            os.close(controller)
        return process.wait(COMMAND_S), drawn


def test_the_main_flow_by_commands_for_people(cli: Cli, box: HttpBox, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept\0\xff\n")

    assert cli.run("cp", str(tmp_path / "file"), f"{box.id}:src/file").returncode == 0
    made = cli.run("backup", box.id, "/workspace", "--name", "by hand")
    backup_id = made.stdout.decode().strip()
    wrecked = cli.run("exec", box.id, "--", "sh", "-c", "rm -r src; echo out; echo err >&2; exit 3")
    restored = cli.run("restore", box.id, backup_id)
    fetched = cli.run("cp", f"{box.id}:/workspace/src/file", "-")
    listed = cli.run("list", box.id)
    files = cli.run("ls", f"{box.id}:src")

    assert (made.returncode, made.stderr) == (0, b"")
    assert (wrecked.returncode, wrecked.stdout, wrecked.stderr) == (3, b"out\n", b"err\n")
    assert restored.stdout.decode() == f"restored {backup_id} to /workspace\n"
    assert fetched.stdout == b"kept\0\xff\n"
    assert listed.stdout.decode().split("\t")[0] == backup_id
    assert files.stdout.decode().split("\t")[-1] == "file\n"


def test_exec_passes_on_what_is_piped_or_redirected_into_it(cli: Cli, box: HttpBox, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1024**2) * 100)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()

    with file.open("rb") as whole:
        summed = cli.run("exec", box.id, "--", "sha256sum", stdin=whole)
    with file.open("rb") as rest:
        os.lseek(rest.fileno(), -3, os.SEEK_END)
        counted = cli.run("exec", box.id, "--", "wc", "-c", stdin=rest)
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        assert endless.stdout is not None
        headed = cli.run("exec", box.id, "--", "sh", "-c", "head -1; exit 4", stdin=endless.stdout)
        endless.stdout.close()
    reading, writing = os.pipe()
    silent = cli.run("exec", box.id, "--", "echo", "end", stdin=reading)
    os.close(writing)
    empty = cli.run("exec", box.id, "--", "cat", stdin=reading)
    os.close(reading)

    assert (summed.returncode, summed.stdout) == (0, f"{expected}  -\n".encode())
    assert counted.stdout == b"3\n"
    assert (headed.returncode, headed.stdout, headed.stderr) == (4, b"y\n", b"")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, b"end\n", b"")
    assert (empty.returncode, empty.stdout) == (0, b"")


def test_exec_reads_nothing_of_a_terminal(cli: Cli, box: HttpBox) -> None:
    status, drawn = cli.on_a_terminal(["exec", box.id, "--", "sh", "-c", "readlink /proc/self/fd/0; cat"])

    assert (status, SAID_BY_RAY.sub(b"", drawn.replace(b"\r", b""))) == (0, b"/dev/null\n")


def test_a_name_that_is_not_utf8_works_in_every_command(cli: Cli, box: HttpBox, tmp_path: Path) -> None:
    name = "caf\udce9"
    (tmp_path / name).write_bytes(b"1")
    (tmp_path / name).chmod(0o750)
    box.sh("mkdir folder; ln -s folder link")

    for target in ("", "/workspace/folder", "link", f"renamed{name}"):
        assert cli.run("cp", str(tmp_path / name), f"{box.id}:{target}").returncode == 0
    fetched = cli.run("cp", f"{box.id}:folder/{name}", str(tmp_path / "back"))
    ran = cli.run("exec", box.id, "--cwd", "/workspace", "--env", f"A={name}", "--", "sh", "-c", 'cat "$A" "$0"', name)
    listed = cli.json("ls", f"{box.id}:folder")
    made = cli.run("exec", box.id, "--", "mkdir", "-p", f"d{name}/x")
    inner = cli.run("ls", f"{box.id}:d{name}")
    refused = cli.run("backup", box.id, f"/workspace/d{name}")
    excluded = cli.run("backup", box.id, "/workspace", "--exclude", f"*{name}")

    assert [done.returncode for done in (fetched, ran, made, inner, refused, excluded)] == [0, 0, 0, 0, 1, 0]
    assert ((tmp_path / "back").read_bytes(), (tmp_path / "back").stat().st_mode & 0o777) == (b"1", 0o750)
    assert ran.stdout == b"11"
    assert [(row["name"], row["mode"]) for row in listed["files"]] == [(name, 0o750)]
    assert b"UTF-8" in refused.stderr


def test_a_backup_says_what_it_could_not_keep(cli: Cli, box: HttpBox) -> None:
    box.exec("python3", "-c", "import socket; socket.socket(socket.AF_UNIX).bind('talk')")
    made = cli.run("backup", box.id, "/workspace")
    assert (made.returncode, made.stderr) == (0, b"note: an archive cannot hold, so left out: 1 sockets\n")


def test_every_command_prints_one_json_document(cli: Cli, box: HttpBox, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")

    assert cli.json("cp", str(tmp_path / "file"), f"{box.id}:file") == {"ok": True, "bytes": 4}
    handle = cli.json("backup", box.id, "/workspace")
    assert handle.keys() == {"id", "dir"}
    ran = cli.run("exec", box.id, "--json", "--", "sh", "-c", "echo out; exit 5")
    document = json.loads(ran.stdout)
    assert (ran.returncode, document["exit_code"], base64.b64decode(document["stdout"])) == (5, 5, b"out\n")
    assert cli.json("restore", box.id, handle["id"]) == {"success": True, "dir": "/workspace", "id": handle["id"]}
    assert [row["name"] for row in cli.json("ls", box.id)["files"]] == ["file"]
    assert [row["id"] for row in cli.json("list", box.id)["backups"]] == [handle["id"]]
    assert box.id in {row["id"] for row in cli.json("list")["sandboxes"]}
    assert cli.json("inspect", handle["id"])["dir"] == "/workspace"
    assert cli.json("inspect", box.id)["id"] == box.id
    (adopted,) = cli.json("adopt", handle["id"])["adopted"]  # the backup is signed by us already
    assert (adopted["id"], adopted["status"]) == (handle["id"], "ok")
    (flattened,) = cli.json("flatten", handle["id"])["flattened"]  # it is a full backup already
    assert flattened == adopted
    assert cli.json("delete", "--backup", handle["id"], "--damaged", status=1)["code"] == "INVALID_REQUEST"
    collected = cli.json("gc", "--dry-run")
    assert collected["dry_run"] is True and handle["id"] not in collected["expired_backups"]
    assert cli.json("delete", "--backup", handle["id"]) == {"deleted": handle["id"]}
    assert cli.json("delete", box.id) == {"deleted": box.id}


def test_an_incremental_backup_is_listed_compared_and_flattened(cli: Cli, box: HttpBox) -> None:
    box.sh("mkdir d; head -c 2000000 /dev/urandom > data; echo 1 > d/a; echo 2 > d/b; echo 3 > gone")
    first = cli.json("backup", box.id, "/workspace", "--full")["id"]
    cli.json("restore", box.id, first)
    box.sh("echo 22 > d/a; rm gone; mkdir gone; echo > gone/x; rm d/b")
    second = cli.json("backup", box.id, "/workspace")["id"]

    rows = {row["id"]: row for row in cli.json("list", box.id)["backups"]}
    listed = cli.json("ls", "--recursive", f"{second}:/")
    changes = {row["path"]: row["change"] for row in cli.json("diff", first, second)["changes"]}
    flattened = cli.json("flatten", second)["flattened"][0]

    assert (rows[first]["depth"], rows[second]["depth"], rows[second]["parent"]) == (1, 2, first)
    assert rows[second]["total_bytes"] == rows[first]["size_bytes"] + rows[second]["size_bytes"]
    assert listed["source"] == "archive"
    assert [file["path"] for file in listed["files"]] == ["/d", "/d/a", "/data", "/gone", "/gone/x"]
    assert changes == {"/d/a": "changed", "/d/b": "removed", "/gone": "changed", "/gone/x": "added"}
    assert cli.json("diff", second, box.id)["changes"] == []
    url = f"/v1/backup/{second}"
    assert box.client.get(f"{url}/files", params={"recursive": True}).json() == listed
    assert box.client.get(f"/v1/sandbox/{box.id}/diff/{second}").json()["changes"] == []
    assert (flattened["depth"], "parent" in flattened) == (1, False)
    assert cli.json("diff", second, flattened["id"])["changes"] == []
    again = box.client.post(f"/v1/sandbox/{box.id}/backup", json={"dir": "/workspace", "full": True}).json()["id"]
    assert box.client.get(f"/v1/backup/{again}").json()["depth"] == 1


def test_the_lifecycle_of_a_store_without_rules_is_a_clear_error(cli: Cli) -> None:
    document = cli.json("lifecycle", status=1)

    assert document.keys() >= {"code", "error", "context"}
    assert "lifecycle" in document["error"]


def test_the_doctor_needs_no_service_and_says_what_there_is(cli: Cli) -> None:
    checks = {check["name"]: check for check in cli.json("doctor")["checks"]}

    assert {"root", "mksquashfs", "bwrap", "sandbox", "cgroup"} <= checks.keys()
    assert all(check["ok"] for check in checks.values() if check["required"])


def test_failures_have_a_status_and_one_sentence(cli: Cli, box: HttpBox) -> None:
    unknown = cli.run("restore", box.id, "00000000-0000-4000-8000-000000000000", "/workspace")
    bad = cli.run("backup", box.id, "/etc")
    usage = cli.run("backup")
    ttl = cli.json("backup", box.id, "/workspace", "--ttl", "nan", status=1)

    assert (unknown.returncode, bad.returncode, usage.returncode) == (1, 1, 2)
    for done in (unknown, bad, usage):
        assert done.stdout == b"" and done.stderr.startswith(b"error: ") and b"Traceback" not in done.stderr
    assert ttl["code"] == "INVALID_BACKUP_CONFIG"
    assert cli.json("backup", status=2)["code"] == "USAGE"


def test_progress_is_drawn_on_a_terminal_and_nowhere_else(cli: Cli, box: HttpBox) -> None:
    box.sh("for i in $(seq 300); do head -c 300000 /dev/urandom > f$i; done")

    status, drawn = cli.on_a_terminal(["backup", box.id, "/workspace", "--compression", "gzip:9"])
    piped = cli.run("backup", box.id, "/workspace")

    assert status == 0, drawn
    assert b"\x1b[" in drawn and (b"compressing" in drawn or b"uploading" in drawn), drawn[-2000:]
    assert b"files" in drawn or b"/s" in drawn
    assert (piped.returncode, piped.stderr) == (0, b"")
    assert b"\x1b" not in piped.stdout


def test_help_needs_no_service(cli: Cli) -> None:
    done = cli.run("--help")

    assert done.returncode == 0
    for name in COMMANDS:
        assert name in done.stdout.decode()


def test_directories_are_copied_as_cp_would(cli: Cli, box: HttpBox, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "f").write_text("f")
    (tree / "g").write_text("g")
    (tmp_path / "link").symlink_to("tree")
    box.sh("mkdir in real; chmod 700 in; echo file > file")
    box.sh("ln -s real link; ln -s nowhere dangling; ln -s ../real in/sub")

    def listed(*argv: str) -> str:
        assert cli.run("cp", "-r", *argv).returncode == 0, argv
        return box.sh("find in real new -type f 2>/dev/null | sort | xargs; rm -rf in/tree in/link in/g real/* new")

    assert listed(f"{tree}/", f"{box.id}:in") == "in/tree/g in/tree/sub/f\n"
    assert listed(f"{tree}/.", f"{box.id}:in") == "in/g real/f\n"  # through the link in/sub
    assert listed(f"{tree}/sub/..", f"{box.id}:new") == "new/g new/sub/f\n"
    assert listed(str(tmp_path / "link"), f"{box.id}:in") == "in/link/g in/link/sub/f\n"
    assert listed(str(tree), f"{box.id}:link") == "real/tree/g real/tree/sub/f\n"
    assert listed(str(tree / "g"), f"{box.id}:in") == "in/g\n"
    assert box.sh("stat -c '%a %N' in in/sub") == "700 'in'\n777 'in/sub' -> '../real'\n"
    for name in ("file", "dangling"):
        refused = cli.run("cp", "-r", str(tree), f"{box.id}:{name}")
        assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1) and b"is no directory" in refused.stderr
    assert box.sh("cat file; readlink dangling") == "file\nnowhere\n"

    box.sh("mkdir -p real/sub; echo x > real/x; ln -s ./x real/link; ln real/x real/sub/hard")
    for source, target in (("link", "a"), ("real/.", "b"), ("real/sub/", "c/"), ("file", "d")):
        assert cli.run("cp", "-r", f"{box.id}:{source}", f"{tmp_path}/{target}").returncode == 0, source
    assert (tmp_path / "a" / "x").samefile(tmp_path / "a" / "sub" / "hard")
    assert (tmp_path / "b" / "link").readlink() == Path("./x")
    assert (tmp_path / "c" / "hard").read_text() == "x\n"
    assert (tmp_path / "d").read_text() == "file\n"
    for argv, named in ((["-r", f"{box.id}:real/.", str(tmp_path)], str(tmp_path)),
                        (["-r", f"{box.id}:real", f"{tmp_path}/none/x"], f"{tmp_path}/none"),
                        ([f"{box.id}:file", f"{tmp_path}/none/x"], f"{tmp_path}/none"),
                        ([f"{box.id}:file", f"{tmp_path}/none/"], f"{tmp_path}/none/"),
                        (["-r", f"{box.id}:real", "-"], "standard output")):  # fmt: skip
        refused = cli.run("cp", *argv)
        assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1) and named.encode() in refused.stderr


def test_directories_are_copied_there_and_back(cli: Cli, box: HttpBox, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "sub" / "tool").write_bytes(os.urandom(3_000_000))
    (tree / "sub" / "tool").chmod(0o750)
    (tree / "a\udcff").write_text("not UTF-8")
    (tree / "link").symlink_to("sub/tool")
    os.link(tree / "sub" / "tool", tree / "hard")
    (tree / "sub").chmod(0o555)

    refused = cli.run("cp", str(tree), f"{box.id}:new")
    assert refused.returncode == 1 and b"-r" in refused.stderr
    assert cli.run("cp", "-r", str(tree), f"{box.id}:new").returncode == 0
    assert cli.run("cp", "-r", str(tree), f"{box.id}:").returncode == 0
    assert box.sh("ls; ls -A /tmp; stat -c '%a %U' new/sub new/sub/tool; readlink new/link; stat -c %h new/hard") == (
        "new\ntree\n555 sandbox\n750 sandbox\nsub/tool\n2\n"
    )
    assert cli.json("cp", "-r", f"{box.id}:/workspace/new", str(tmp_path / "back"))["ok"]
    assert cli.run("cp", "-r", f"{box.id}:tree", str(tmp_path / "back")).returncode == 0
    for back in (tmp_path / "back", tmp_path / "back" / "tree"):
        assert (back / "sub" / "tool").read_bytes() == (tree / "sub" / "tool").read_bytes()
        assert (back / "a\udcff").read_text() == "not UTF-8"
        assert (back / "link").readlink() == Path("sub/tool")
        assert (back / "hard").samefile(back / "sub" / "tool")
        assert (back / "sub").stat().st_mode & 0o777 == 0o555
    assert box.sh("ls -A /tmp") == ""

    for wrong in (["cp", "-r", f"{box.id}:tree", str(tmp_path / "back")], ["cp", "-r", f"{box.id}:none", "x"]):
        refused = cli.run(*wrong)
        assert refused.returncode == 1 and b"Traceback" not in refused.stderr
