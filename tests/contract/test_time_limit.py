"""The time limit of requests: a bucket that hangs, or that only fails, is given up in time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest
from pydantic import SecretStr

from storage.config import BucketConfig, TransferConfig
from storage.errors import StoreUnavailableError
from storage.s3 import S3ObjectStore
from storage.time_limit import left_s, within_moments

PATIENT = TransferConfig(attempts=20, idle_timeout_s=300, connect_timeout_s=300)
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextmanager
def bucket(answer: Callable[[socket.socket], None]) -> Iterator[S3ObjectStore]:
    """A store whose server does `answer` with each connection."""
    kept: list[socket.socket] = []

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                kept.append(connection)
                answer(connection)

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        config = BucketConfig(
            bucket="bucket",
            endpoint_url=f"http://127.0.0.1:{listening.getsockname()[1]}",
            region="us-east-1",
            access_key_id=SecretStr("key"),
            secret_access_key=SecretStr("secret"),
        )
        try:
            yield S3ObjectStore(config, transfer=PATIENT, conditional_writes=True)
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            for connection in kept:
                connection.close()


def hang(connection: socket.socket) -> None:
    """Never answers."""


def refuse(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(BUSY)
    connection.close()


@pytest.mark.parametrize("answer", [hang, refuse])
def test_a_request_ends_with_its_time_limit(
    answer: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("time_limit", "s3_client"):
        monkeypatch.setattr(f"storage.{module}.MOMENTS_S", 0.5)
    with bucket(answer) as store:
        began = time.monotonic()
        with within_moments(), pytest.raises(StoreUnavailableError):
            store.put("key", b"data")
        assert time.monotonic() - began < 30  # without the limit, five minutes, or twenty attempts


def test_there_is_no_limit_outside_of_the_block() -> None:
    assert left_s() is None
    with within_moments():
        left = left_s()
        assert left is not None and 0 < left <= 3
    assert left_s() is None
