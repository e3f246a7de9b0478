"""An actor's log: one JSON object per line, with the context of the call."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.full_disk import filled, tmpfs

PROGRAM = "tests.support.programs.log_of_calls"


def test_a_log_line_is_one_json_object_with_the_calls_context() -> None:
    done = subprocess.run([sys.executable, "-m", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    for line in lines:
        assert line.pop("timestamp").endswith("Z")
    assert lines == [
        {"event": "first", "level": "info", "detail": "two\nlines", "sandbox": "inner", "request_id": "r"},
        {"event": "second", "level": "warning", "sandbox": "box", "request_id": "r"},
        {"event": "third", "level": "error", "sandbox": "told"},
    ]
    assert done.stdout == ""


STORAGE = "tests.support.programs.log_of_storage"


def test_log_lines_of_storage_have_the_same_form() -> None:
    done = subprocess.run([sys.executable, "-m", STORAGE], capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    for line in lines:
        del line["timestamp"]
    named = {"logger": "storage.upload", "sandbox": "box", "request_id": "r"}
    in_a_thread = {"event": "in a thread", "level": "info", **named}
    assert lines == [
        {"event": "two\nlines", "level": "warning", **named},
        in_a_thread,
        in_a_thread,
        {"event": "damaged", "level": "error", "logger": "storage.upload"},
    ]


def test_a_process_goes_on_when_its_log_cannot_be_written() -> None:
    program = "from actors.logs import configure_logging, log; configure_logging(); log.error('full'); print('goes on')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, timeout=60)
    assert done.stdout == b"goes on\n"


UNTIL_TOLD = "tests.support.programs.log_until_told"


@pytest.mark.parametrize("logger", ["an actor's", "the gateway's"])
def test_log_lines_lost_on_a_full_disk_are_counted_and_the_count_is_logged(tmp_path: Path, logger: str) -> None:
    argv = [sys.executable, "-m", UNTIL_TOLD, logger]
    with tmpfs(tmp_path / "disk", "size=1m") as disk, (disk / "log").open("w") as log:
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdin is not None and process.stdout is not None

            def log_a_line() -> None:
                print(file=process.stdin, flush=True)
                assert process.stdout is not None and process.stdout.readline() == "goes on\n"

            log_a_line()
            with filled(disk):
                for _ in range(5):
                    log_a_line()
            log_a_line()
            log_a_line()
            process.stdin.close()
            assert process.wait(60) == 0
        lines = (disk / "log").read_text().splitlines()
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    assert [line["event"] for line in whole] == ["line", "log_lines_lost", "line", "line"]
    assert whole[1]["count"] == 5
    assert len(lines) - len(whole) <= 1  # the beginning of the first lost line
