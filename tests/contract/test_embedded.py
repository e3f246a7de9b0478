"""The embedded server keeps what it was given, gives nobody its keys, and dies with its parent."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr

from storage.embedded import EmbeddedS3
from storage.errors import StorageError, StoreUnavailableError
from storage.s3 import S3ObjectStore
from tests.support.s3 import ACCESS_KEY, BUCKET, FAST, SECRET_KEY, embedded_s3


def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
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


def test_neither_key_is_in_any_argument_and_the_folder_is_private(tmp_path: Path) -> None:
    with embedded_s3(tmp_path / "data") as server:
        argv = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert ACCESS_KEY.encode() not in argv and SECRET_KEY.encode() not in argv
        S3ObjectStore(server.config, transfer=FAST).put("a", b"x")
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "data" / BUCKET / "a").stat().st_mode) == 0o600
        assert server.config.host.startswith("127.0.0.1:")


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
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


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, signal\n"
        "from pydantic import SecretStr\n"
        "from storage.embedded import EmbeddedS3\n"
        f"server = EmbeddedS3(pathlib.Path(sys.argv[1]), access_key=SecretStr({ACCESS_KEY!r}), "
        f"secret_key=SecretStr({SECRET_KEY!r}))\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    try:
        assert select.select([pidfd], [], [], 10)[0], "the server is still there"
    finally:
        os.close(pidfd)


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with embedded_s3(tmp_path), pytest.raises(StorageError, match="another one has this folder"), embedded_s3(tmp_path):
        pass


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    with embedded_s3(tmp_path / "a") as server:
        port = int(server.config.host.rpartition(":")[2])
        with pytest.raises(StoreUnavailableError), embedded_s3(tmp_path / "b", port=port):
            pass
    with embedded_s3(tmp_path / "b", port=port) as server:
        assert server.config.host == f"127.0.0.1:{port}"


@pytest.mark.parametrize("key", ["short", "has,comma,in,it", 'has"quote"in"it', "has\nnewline\nin\nit"])
def test_keys_that_rclone_cannot_be_given_are_refused(tmp_path: Path, key: str) -> None:
    for pair in ((key, SECRET_KEY), (ACCESS_KEY, key)):
        with pytest.raises(ValueError, match="key must be") as caught:
            EmbeddedS3(tmp_path, access_key=SecretStr(pair[0]), secret_key=SecretStr(pair[1]))
        assert key not in str(caught.value)
