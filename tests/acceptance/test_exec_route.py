"""Commands: their output, their end, and their isolation."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from actors.sandbox.admission import THREADS
from tests.acceptance.http_box import WAIT_S, HttpBox, Running, refusal
from tests.support.service import Service, eventually, read_or_empty
from tests.support.signals import disturbed_signals

MIB = 1024**2
UNREAD = """
import fcntl, os, termios, time
while int.from_bytes(fcntl.ioctl(0, termios.FIONREAD, bytes(4)), "little") < fcntl.fcntl(0, fcntl.F_GETPIPE_SZ):
    time.sleep(0.01)
print("full", flush=True)
while not os.path.exists("go"):
    time.sleep(0.02)
"""
"""A command that says when its input is full, and reads nothing of it."""
SLEEPER = b"sleep\x00999.125\0"

PROGRAMS = Path(__file__).parents[1] / "support" / "programs"


@pytest.fixture(scope="module")
def box(client: httpx.Client) -> Iterator[HttpBox]:
    """One sandbox for all tests in this module: none of them leaves a process."""
    with HttpBox(client, f"exec-{uuid.uuid4().hex[:8]}").destroyed_at_the_end() as box:
        yield box


@pytest.fixture(autouse=True)
def empty(box: HttpBox) -> None:
    eventually(lambda: box.client.get(box.url).json().get("commands", 0) == 0)
    box.sh("find . -mindepth 1 -delete")


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_a_commands_exit_status_is_its_result(box: HttpBox, status: int) -> None:
    ran = box.exec("sh", "-c", f"exit {status}")

    assert (ran.exit_code, ran.error, ran.events) == (status, None, ["exit"])


def test_a_command_killed_by_a_signal_ends_as_in_a_shell(box: HttpBox) -> None:
    assert box.exec("sh", "-c", "kill -9 $$").exit_code == 137


def test_a_program_that_does_not_exist_ends_with_127_and_one_that_cannot_run_with_126(box: HttpBox) -> None:
    box.sh("echo > plain")

    assert box.exec("no-such-program").exit_code == 127
    assert box.exec("/workspace/missing").exit_code == 127
    assert box.exec("/workspace/plain").exit_code == 126


def test_each_stream_keeps_its_order_and_all_its_bytes(box: HttpBox) -> None:
    ran = box.exec("sh", "-c", "for i in $(seq 2000); do echo o$i; echo e$i >&2; done")

    assert ran.stdout == b"".join(b"o%d\n" % i for i in range(1, 2001))
    assert ran.stderr == b"".join(b"e%d\n" % i for i in range(1, 2001))
    assert ran.events[-1] == "exit"
    binary = box.exec("sh", "-c", "head -c 3000000 /dev/zero; printf '\\377\\r\\n\\000'")
    assert binary.stdout == bytes(3_000_000) + b"\xff\r\n\0"


def test_output_comes_while_the_command_still_runs(box: HttpBox) -> None:
    running = box.start("sh", "-c", "echo first; while [ ! -e go ]; do sleep 0.02; done; echo second")
    running.said(b"first\n")

    box.write("/workspace/go", b"")

    assert running.result().stdout == b"first\nsecond\n"


def test_arguments_arrive_as_they_are_without_a_shell(box: HttpBox) -> None:
    words = ["a b", "$HOME", "*", "'", '"', "\\", "", "-n", "new\nline", "ü🌲", "--", ";"]

    assert box.exec("printf", "%s|", *words).text == "|".join([*words, ""])
    assert box.exec("sh", "-c", 'printf %s "$1"', "sh", "a=b").text == "a=b"


def test_a_command_that_takes_too_long_is_killed_with_an_event_that_says_so(box: HttpBox) -> None:
    long = unique_seconds()
    for timeout_ms in (300, 3_000, 30_000):  # the command's start counts; on a busy machine it takes long
        script = f"echo began; (trap '' TERM; sleep {long}) & sleep {long}"
        ran = box.exec("sh", "-c", script, timeout_ms=timeout_ms)
        assert (ran.error or {})["code"] == "EXEC_TIMEOUT"
        if ran.stdout:
            break

    assert ran.stdout == b"began\n"
    assert ran.events == ["stdout", "error"]
    assert (ran.error or {}).keys() == {"error", "code"}
    assert (ran.error or {})["code"] == "EXEC_TIMEOUT"
    eventually(lambda: not runs_on_the_node(long))


def test_a_command_has_default_signals_and_streams_that_can_be_opened(box: HttpBox) -> None:
    status = dict(line.split(":\t", 1) for line in box.sh("cat /proc/self/status").splitlines() if ":\t" in line)

    assert disturbed_signals(status) == (0, 0)
    assert box.exec("timeout", "-s", "INT", "0.2", "sleep", "600", timeout_ms=120_000).exit_code == 124
    ran = box.exec("sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin; umask")
    assert (ran.stdout, ran.stderr) == (b"out\n0022\n", b"err\n")


def test_a_command_reads_the_input_that_came_with_it(box: HttpBox) -> None:
    data = bytes(range(256)) * 2048
    encoded = base64.b64encode(data).decode()

    given = {"stdin": "ü\n"}, {"stdin": ""}, {"stdin_base64": encoded}
    read = [Running(box, {"argv": ["cat"], **each}).result().stdout for each in given]

    assert read == ["ü\n".encode(), b"", data]
    assert refusal(box.post("exec", argv=["cat"], stdin="x" * (len(data) + 1))) == (422, "INVALID_REQUEST")


def test_a_command_reads_a_large_input_while_it_is_sent(box: HttpBox) -> None:
    block = os.urandom(MIB)
    expected = hashlib.sha256(block * 100).hexdigest()
    summing, copying = box.taking_input("sha256sum"), box.taking_input("cat")

    sent = summing.feed(block for _ in range(100))
    copied = copying.feed(block for _ in range(10))

    assert (sent.status_code, sent.json()) == (200, {"ok": True, "complete": True})
    assert summing.result().text == f"{expected}  -\n"
    assert summing.result().events == ["started", "stdout", "exit"]
    assert copied.json()["complete"] and copying.result().stdout == block * 10


def test_each_piece_of_input_reaches_the_command_before_the_next(box: HttpBox) -> None:
    running = box.taking_input("cat")

    def lines() -> Iterator[bytes]:
        for line in (b"1\n", b"2\n"):
            yield line
            running.said(line)

    assert running.feed(lines()).json()["complete"]
    assert running.result().stdout == b"1\n2\n"


def test_an_unread_input_waits_at_its_client(box: HttpBox) -> None:
    running = box.taking_input("sh", "-c", "until [ -e go ]; do sleep 0.02; done; exit 3")
    taken, changed_at, has_ended = 0, time.monotonic(), threading.Event()

    def blocks() -> Iterator[bytes]:
        nonlocal taken, changed_at
        while taken < 200 and not has_ended.is_set():
            taken, changed_at = taken + 1, time.monotonic()
            yield bytes(MIB)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(running.feed, blocks())
        eventually(lambda: sent.done() or (taken and time.monotonic() - changed_at > 1))
        assert not sent.done() and taken < 100, "more than the connection's buffers hold"
        box.write("/workspace/go", b"")
        assert running.result().exit_code == 3
        has_ended.set()
        assert sent.result(WAIT_S).json() == {"ok": True, "complete": False}


def test_writers_that_wait_for_their_commands_hold_up_no_other_call(box: HttpBox) -> None:
    waiting = [box.taking_input("python3", "-c", UNREAD) for _ in range(THREADS["files"] + 1)]

    with ThreadPoolExecutor(len(waiting)) as pool:
        sent = [pool.submit(running.feed, bytes(MIB)) for running in waiting]
        for running in waiting:
            running.said(b"full\n")
        box.write("/workspace/file", b"written")
        assert box.sh("cat file") == "written"
        assert not any(each.done() for each in sent)
        box.write("/workspace/go", b"")
        assert [each.result(WAIT_S).json()["complete"] for each in sent] == [False] * len(waiting)
    assert [running.result().exit_code for running in waiting] == [0] * len(waiting)


def test_a_command_that_ends_without_reading_is_no_error(box: HttpBox) -> None:
    running = box.taking_input("sh", "-c", "exit 3")

    assert running.result().exit_code == 3
    sent = running.feed(b"x" * MIB)
    assert (sent.status_code, sent.json()) == (200, {"ok": True, "complete": False})


def test_an_input_whose_client_goes_away_stops_its_command(box: HttpBox) -> None:
    running = box.taking_input("cat")

    def breaking() -> Iterator[bytes]:
        yield b"a part"
        running.said(b"a part")
        raise ConnectionError

    with pytest.raises(ConnectionError):
        running.feed(breaking())
    ran = running.result()
    assert (ran.stdout, ran.events[-1], (ran.error or {})["code"]) == (b"a part", "error", "EXEC_STOPPED")


def test_an_input_is_sent_once_and_only_to_a_command_that_takes_it(box: HttpBox) -> None:
    running = box.taking_input("sh", "-c", "cat; until [ -e go ]; do sleep 0.02; done")
    assert running.feed(b"whole").json()["complete"]

    assert refusal(running.feed(b"again")) == (409, "INPUT_TAKEN")
    assert refusal(box.client.put(f"{box.url}/exec/unknown/stdin", content=b"x")) == (404, "COMMAND_NOT_FOUND")
    missing = "/v1/sandbox/never-used/exec/unknown/stdin"
    assert refusal(box.client.put(missing, content=b"x")) == (404, "COMMAND_NOT_FOUND")
    assert refusal(box.client.get("/v1/sandbox/never-used")) == (404, "SANDBOX_NOT_FOUND")
    box.write("/workspace/go", b"")
    assert running.result().stdout == b"whole"


def test_the_working_directory_is_the_workspace_or_the_one_asked_for(box: HttpBox) -> None:
    box.sh("mkdir -p 'a b'")

    assert box.exec("pwd").text == "/workspace\n"
    assert box.exec("pwd", cwd="/workspace/a b").text == "/workspace/a b\n"
    assert box.exec("pwd", cwd="/usr/bin").text == "/usr/bin\n"
    assert refusal(box.post("exec", argv=["pwd"], cwd="/workspace/missing")) == (404, "FILE_NOT_FOUND")


def test_a_variable_reaches_the_command_and_no_process_list(box: HttpBox) -> None:
    secret = uuid.uuid4().hex
    box.sh("mkfifo fifo")
    running = box.start(
        "sh", "-c", 'test -n "$TOKEN" && echo ready; read -r _ < fifo; printf %s "$TOKEN"', TOKEN=secret
    )
    running.said(b"ready")

    lines = [read_or_empty(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert any(b"test -n" in line for line in lines)
    assert not [line for line in lines if secret.encode() in line]
    running.hang_up()


def test_a_client_that_goes_away_stops_its_command(box: HttpBox) -> None:
    long = unique_seconds()
    running = box.start("sh", "-c", f"(trap '' TERM HUP; sleep {long}) & echo ready; wait")
    running.said(b"ready")
    eventually(lambda: box.info()["commands"] == 1)
    eventually(lambda: runs_on_the_node(long))

    running.hang_up()

    eventually(lambda: box.info()["commands"] == 0)
    eventually(lambda: not runs_on_the_node(long))


def test_commands_of_one_sandbox_run_side_by_side(box: HttpBox) -> None:
    box.sh("mkfifo fifo")
    reader = box.start("cat", "fifo")
    writer = box.start("sh", "-c", "echo passed > fifo")

    assert (reader.result().stdout, writer.result().exit_code) == (b"passed\n", 0)


def test_background_processes_of_a_command_end_with_it(box: HttpBox) -> None:
    long = unique_seconds()
    box.sh("mkfifo fifo")
    command = box.start("sh", "-c", f"setsid sleep {long} >/dev/null 2>&1 & read -r _ < fifo")
    eventually(lambda: runs_on_the_node(long))

    box.sh("echo > fifo")

    assert command.result().exit_code is not None
    eventually(lambda: not runs_on_the_node(long))


def test_a_command_has_an_unprivileged_user_and_no_capabilities(box: HttpBox) -> None:
    status = dict(line.split(":\t", 1) for line in box.sh("cat /proc/self/status").splitlines() if ":\t" in line)

    assert box.sh("id -u; id -g") == "1000\n1000\n"
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    for forbidden in (
        "mount -t tmpfs none /tmp",
        "unshare -r true",
        "mknod /workspace/d c 1 3",
        "chroot / true",
        "su -c true",
    ):
        assert box.exec("sh", "-c", forbidden).exit_code != 0
    assert box.exec("sh", "-c", "echo x > /usr/bin/x").exit_code != 0
    assert box.exec("sh", "-c", "echo x > /etc/passwd").exit_code != 0


def test_a_command_has_an_unprivileged_user_on_the_node_too(box: HttpBox) -> None:
    long = unique_seconds()
    running = box.start("sh", "-c", f"echo ready; exec sleep {long}")
    running.said(b"ready")

    def sleeping() -> list[Path]:
        return [
            path
            for path in Path("/proc").glob("[0-9]*")
            if read_or_empty(path / "cmdline") == b"sleep\0%s\0" % long.encode()
        ]

    eventually(lambda: len(sleeping()) == 1)
    (pid,) = sleeping()
    uids = next(line for line in (pid / "status").read_text().splitlines() if line.startswith("Uid:"))
    assert "0" not in uids.split()[1:]
    assert int((pid / "oom_score_adj").read_text()) >= 0
    running.hang_up()


def test_there_is_no_network(service: Service, box: HttpBox) -> None:
    port = int(service.url.rsplit(":", 1)[1])
    script = (PROGRAMS / "connecting.py").read_text()

    assert box.exec("python3", "-c", script, "127.0.0.1", str(port)).text.startswith("refused")
    assert box.exec("python3", "-c", script, "1.1.1.1", "53").text.startswith("refused")
    assert box.sh("ls /sys/class/net 2>/dev/null || tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '") == "lo\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30):
        pass  # the node itself has a network


def test_a_command_sees_neither_the_node_nor_another_sandbox_nor_the_services_environment(
    service: Service, boxes: Callable[[], HttpBox]
) -> None:
    mine, other = boxes(), boxes()
    other.sh("echo of-another > /workspace/secret; echo of-another > /tmp/secret")
    running = other.start("sh", "-c", "echo ready; exec sleep 777.25")
    running.said(b"ready")
    node = socket.gethostname()

    assert mine.sh("cat /workspace/secret /tmp/secret 2>/dev/null || echo none") == "none\n"
    assert "777.25" not in mine.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert mine.exec("sh", "-c", 'ls "$FOLDER"', FOLDER=str(service.data_dir)).exit_code != 0
    assert mine.sh("ls /").split() == ["app", "bin", "dev", "etc", "home", "lib", "lib64", "proc", "run", "sbin", "tmp",
                                       "usr", "var", "workspace"]  # fmt: skip
    assert mine.exec("cat", "/etc/shadow").exit_code != 0
    assert mine.sh("cat /etc/passwd").count("\n") == 2
    assert mine.sh("hostname || cat /proc/sys/kernel/hostname") != f"{node}\n"
    names = {line.partition("=")[0] for line in mine.sh("env").splitlines()}
    assert names == {"PATH", "HOME", "USER", "LANG", "TMPDIR", "PWD"}
    assert "HOLDFAST" not in mine.sh("cat /proc/[0-9]*/environ | tr '\\0' '\\n'")
    running.hang_up()


def test_a_descriptor_of_the_service_is_not_inherited(box: HttpBox) -> None:
    targets = box.sh("for f in /proc/self/fd/*; do readlink $f; done | sort -u")

    assert all(line.startswith(("pipe:", "/dev/null", "/proc/")) for line in targets.splitlines()), targets


def test_a_fork_bomb_is_limited(box: HttpBox) -> None:
    ran = box.exec("python3", "-c", (PROGRAMS / "forking.py").read_text(), timeout_ms=120_000)

    assert ran.exit_code == 0, ran
    assert 0 < int(ran.stdout) <= 1024


def unique_seconds() -> str:
    """A sleep duration that no other process of this machine uses."""
    return f"1000.{uuid.uuid4().int}"


def runs_on_the_node(seconds: str) -> bool:
    """True if a `sleep` of this duration runs in any sandbox: the node sees the processes of all sandboxes."""
    sleeper = b"sleep\0" + seconds.encode() + b"\0"
    return any(read_or_empty(path) == sleeper for path in Path("/proc").glob("[0-9]*/cmdline"))


def test_the_service_process_has_no_secret_in_its_environment(service: Service) -> None:
    running = [pid for pid in service.pids() if os.path.exists(f"/proc/{pid}") and pid != service.process.pid]
    environments = b"".join(read_or_empty(Path(f"/proc/{pid}/environ")) for pid in running)

    assert b"HOME=" in environments
    assert service.api_key.encode() not in environments
