"""The embedded S3 server keeps its objects, hides its keys, is restarted when it dies, and dies with its parent."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from storage.embedded import HUNG_AFTER_S, EmbeddedS3
from storage.errors import StorageError, StoreUnavailableError
from storage.s3 import S3ObjectStore
from tests.support.mount_leaks import wait_until
from tests.support.ports import free_port
from tests.support.s3 import ACCESS_KEY, BUCKET, FAST, SECRET_KEY, embedded_s3
from tests.support.service import PROJECT


def test_stored_objects_survive_a_restart(tmp_path: Path) -> None:
    with embedded_s3(tmp_path) as server:
        store = S3ObjectStore(server.config, transfer=FAST)
        etag = store.put("backups/a/meta.json", b"{}")
        upload_id = store.create_upload("backups/a/data.sqsh")
    with embedded_s3(tmp_path) as server:
        store = S3ObjectStore(server.config, transfer=FAST)
        assert store.get("backups/a/meta.json").etag == etag
        assert list(store.list_uploads("")) == []
        store.abort_upload("backups/a/data.sqsh", upload_id)


def test_the_unconfirmed_upload_of_a_killed_server_is_removed_at_the_next_start(tmp_path: Path) -> None:
    leftover = tmp_path / BUCKET / "backups" / ".rclone_temp_multipart_x"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"x")
    with embedded_s3(tmp_path):
        assert not leftover.exists()


def test_no_key_is_in_an_argument_and_the_folder_is_private(tmp_path: Path) -> None:
    with embedded_s3(tmp_path / "data") as server:
        argv = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert ACCESS_KEY.encode() not in argv and SECRET_KEY.encode() not in argv
        S3ObjectStore(server.config, transfer=FAST).put("a", b"x")
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "data" / BUCKET / "a").stat().st_mode) == 0o600
        assert server.config.host.startswith("127.0.0.1:")


def bytes_read(server: EmbeddedS3) -> int:
    """The bytes that the server has read from files and sockets. Source: proc_pid_io(5), rchar."""
    lines = Path(f"/proc/{server.pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_the_size_of_an_object_is_told_without_reading_it(tmp_path: Path) -> None:
    size_bytes = 20_000_000
    with embedded_s3(tmp_path) as server:
        store = S3ObjectStore(server.config, transfer=FAST)
        store.put("large", os.urandom(size_bytes))
        before = bytes_read(server)
        assert store.size_of("large") == size_bytes
        assert bytes_read(server) - before < size_bytes / 2
        store.head("large")
        assert bytes_read(server) - before >= size_bytes


def test_the_size_of_an_object_is_asked_for_where_its_file_is_not_seen(tmp_path: Path) -> None:
    with embedded_s3(tmp_path / "data") as server:
        S3ObjectStore(server.config, transfer=FAST).put("a", b"xyz")
        elsewhere = server.config.model_copy(update={"folder": tmp_path / "elsewhere"})
        assert S3ObjectStore(elsewhere, transfer=FAST).size_of("a") == 3


def test_a_dead_server_tells_no_size(tmp_path: Path) -> None:
    with embedded_s3(tmp_path) as server:
        config = server.config
        S3ObjectStore(config, transfer=FAST).put("a", b"xyz")
    with pytest.raises(StoreUnavailableError):
        S3ObjectStore(config, transfer=FAST).size_of("a")


def test_the_server_computes_no_digests_that_nobody_compares(tmp_path: Path) -> None:
    with embedded_s3(tmp_path) as server:
        argv = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")
        assert {b"--ignore-checksum", b"--no-checksum"} <= set(argv)


def test_the_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    server = EmbeddedS3(tmp_path, access_key=SecretStr(ACCESS_KEY), secret_key=SecretStr(SECRET_KEY))
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        S3ObjectStore(server.config, transfer=FAST).check()
    finally:
        server.stop()
    assert server.pid is None
    server.stop()


def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.support.programs.embedded_store", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    try:
        assert select.select([pidfd], [], [], 60)[0], "the server is still there"
    finally:
        os.close(pidfd)


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with embedded_s3(tmp_path), pytest.raises(StorageError, match="another one has this folder"), embedded_s3(tmp_path):
        pass


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    port = free_port()
    with (
        embedded_s3(tmp_path / "a", port=port),
        pytest.raises(StoreUnavailableError),
        embedded_s3(tmp_path / "b", port=port),
    ):
        pass
    with embedded_s3(tmp_path / "b", port=port) as server:
        assert server.config.host == f"127.0.0.1:{port}"


@pytest.mark.parametrize("key", ["short", "has,comma,in,it", 'has"quote"in"it', "has\nnewline\nin\nit"])
def test_keys_that_rclone_cannot_take_are_refused(tmp_path: Path, key: str) -> None:
    for pair in ((key, SECRET_KEY), (ACCESS_KEY, key)):
        with pytest.raises(ValueError, match="key must be") as caught:
            EmbeddedS3(tmp_path, access_key=SecretStr(pair[0]), secret_key=SecretStr(pair[1]))
        assert key not in str(caught.value)


@dataclass
class Told:
    """A log that keeps its lines and counts an event's."""

    lines: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def warning(self, event: str, **details: Any) -> None:
        self.lines.append((event, details))

    error = warning

    def count(self, event: str) -> int:
        return sum(line[0] == event for line in self.lines)


@contextmanager
def told_of(folder: Path, *, port: int = 0, hung_after_s: float = HUNG_AFTER_S) -> Iterator[tuple[EmbeddedS3, Told]]:
    told = Told()
    keys = {"access_key": SecretStr(ACCESS_KEY), "secret_key": SecretStr(SECRET_KEY)}
    with EmbeddedS3(folder, bucket=BUCKET, port=port, log=told, hung_after_s=hung_after_s, **keys) as server:
        yield server, told


def kill(server: EmbeddedS3, number: signal.Signals = signal.SIGKILL) -> None:
    assert server.pid is not None
    os.kill(server.pid, number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_server_that_ends_is_restarted_with_its_port_and_keys_and_logged(
    tmp_path: Path, number: signal.Signals
) -> None:
    with told_of(tmp_path) as (server, told):
        before, config = server.pid, server.config
        store = S3ObjectStore(config, transfer=FAST)
        store.put("kept", b"x")
        for ends in (1, 2):
            kill(server, number)
            assert wait_until(lambda ends=ends: told.count("embedded_store_restarted") == ends)  # type: ignore[misc]
            assert store.get("kept").data == b"x"
        assert server.config == config and server.pid not in (None, before)
    assert server.pid is None
    ended, restarted = told.lines[0], told.lines[1]
    assert ended[0] == "embedded_store_ended" and restarted[0] == "embedded_store_restarted"
    assert restarted[1]["address"] == config.host
    assert not any(key in str(told.lines) for key in (ACCESS_KEY, SECRET_KEY))


def test_a_server_that_answers_nothing_is_killed_and_restarted(tmp_path: Path) -> None:
    with told_of(tmp_path, hung_after_s=4.0) as (server, told):  # a busy machine is no hung server
        store = S3ObjectStore(server.config, transfer=FAST)
        store.put("kept", b"x")
        for restarts in (1, 2):
            kill(server, signal.SIGSTOP)
            assert wait_until(lambda n=restarts: told.count("embedded_store_restarted") == n)  # type: ignore[misc]
            assert store.get("kept").data == b"x"
    assert [event for event, _ in told.lines] == 2 * [
        "embedded_store_hung",
        "embedded_store_ended",
        "embedded_store_restarted",
    ]


def test_a_server_that_answers_is_left_alone(tmp_path: Path) -> None:
    with told_of(tmp_path, hung_after_s=4.0) as (server, told):
        pid, began = server.pid, time.monotonic()
        while time.monotonic() < began + 5.0:
            S3ObjectStore(server.config, transfer=FAST).check()
        assert server.pid == pid and told.lines == []


def test_the_pauses_before_restarts_grow(tmp_path: Path) -> None:
    with told_of(tmp_path) as (server, told):
        for ends in range(1, 6):
            kill(server)
            assert wait_until(lambda ends=ends: told.count("embedded_store_restarted") == ends)  # type: ignore[misc]
        S3ObjectStore(server.config, transfer=FAST).check()
    pauses = [details["restart_in_s"] for event, details in told.lines if event == "embedded_store_ended"]
    assert len(pauses) == 5 and pauses == sorted(set(pauses))


def test_the_port_stays_reserved_while_the_server_is_dead(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with told_of(folder) as (server, told):
        address = ("127.0.0.1", int(server.config.host.rpartition(":")[2]))
        kill(server, signal.SIGSTOP)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(address)
        kill(server)
        assert wait_until(lambda: told.count("embedded_store_ended") == 1)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(address)


def test_stopping_while_the_server_is_dead_starts_no_new_one(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with told_of(tmp_path) as (server, told):
        kill(server)
        assert wait_until(lambda: told.count("embedded_store_ended") == 1)
    assert server.pid is None
    assert not [t for t in threading.enumerate() if t.name == "embedded-s3" and t not in before]
