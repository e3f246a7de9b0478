"""Real S3 servers for tests, and a proxy that injects faults into their answers as a script says.

Everything here is a context manager, on 127.0.0.1.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
from pydantic import SecretStr

from storage.config import BucketConfig, TransferConfig
from storage.embedded import EmbeddedS3

ACCESS_KEY = "TESTACCESSKEY0001"
SECRET_KEY = "testsecretkey/testsecretkey+0001"
BUCKET = "holdfast-test"

# Short pauses, so that a test of ten failures takes a fraction of a second; but long timeouts for slow servers: rclone
# alone takes half a second to confirm that it has dropped an upload.
FAST = TransferConfig(
    part_bytes=5 * 2**20,
    concurrency=3,
    attempts=4,
    connect_timeout_s=10,
    idle_timeout_s=20,
    backoff_initial_s=0.001,
    backoff_max_s=0.01,
)
# For tests in which a server stops answering.
IMPATIENT = FAST.model_copy(update={"idle_timeout_s": 1.0, "attempts": 20})


@contextmanager
def embedded_s3(folder: Path, *, bucket: str = BUCKET, port: int = 0) -> Iterator[EmbeddedS3]:
    """rclone over `folder`: checks signatures, expiry and MD5; ignores conditions."""
    server = EmbeddedS3(
        folder, access_key=SecretStr(ACCESS_KEY), secret_key=SecretStr(SECRET_KEY), bucket=bucket, port=port
    )
    with server:
        yield server


@contextmanager
def moto_s3(*, bucket: str = BUCKET) -> Iterator[BucketConfig]:
    """moto's server: supports conditions and lifecycle rules; checks neither signatures nor expiry nor MD5.

    All moto servers of one process share their buckets.
    """
    from moto.server import ThreadedMotoServer  # slow to import, and not needed by processes that are killed

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        config = BucketConfig(
            bucket=bucket,
            endpoint_url=f"http://{host}:{port}",
            region="us-east-1",
            access_key_id=SecretStr(ACCESS_KEY),
            secret_access_key=SecretStr(SECRET_KEY),
        )
        boto3.client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=config.region,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        ).create_bucket(Bucket=bucket)
        yield config
    finally:
        server.stop()


def real_bucket() -> BucketConfig | None:
    """The bucket in HOLDFAST_TEST_BUCKET_NAME, _ENDPOINT, _REGION, _ACCESS_KEY_ID and _SECRET_ACCESS_KEY, if set."""

    def read(name: str) -> str | None:
        return os.environ.get(f"HOLDFAST_TEST_BUCKET_{name}")

    name, access, secret = read("NAME"), read("ACCESS_KEY_ID"), read("SECRET_ACCESS_KEY")
    if not (name and access and secret):
        return None
    return BucketConfig(
        bucket=name,
        endpoint_url=read("ENDPOINT"),
        region=read("REGION") or "auto",
        access_key_id=SecretStr(access),
        secret_access_key=SecretStr(secret),
    )


@dataclass(slots=True)
class FaultProxy:
    """The proxy's script and its record. `script("part", "ok 503 reset")` plays the words for the next part requests.

    Operations: part, put (presigned), get (presigned), head, complete, create, abort, delete, api (the rest).
    Words for requests that are not forwarded: 503, 500, 429, 403 (any status; as an S3 error), expired, error200
    (an <Error> under 200), page, well-formed (HTML under 200, as it is and as XML), reset (before an answer),
    reset-body (after 64 KiB of the request), stall (no answer).
    Words for forwarded requests: ok, flip-request (one bit of the request's body), lost (the answer is dropped),
    truncate (half of the body, then the end), reset-answer (the same, then a reset), stall-answer (the same, then
    silence), flip (one bit of the body), no-etag (an empty one), whole (200 and the whole object), wrong-range (206
    and another range), short.
    """

    port: int
    seen: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)
    _scripts: defaultdict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def script(self, operation: str, words: str) -> None:
        """Queues words for an operation. After them, requests are forwarded unchanged."""
        with self._lock:
            self._scripts[operation].extend(words.split())

    def clear(self) -> None:
        """Drops the words that were not played."""
        with self._lock:
            self._scripts.clear()

    def next_word(self, operation: str) -> str:
        with self._lock:
            word = self._scripts[operation].popleft() if self._scripts[operation] else "ok"
            self.seen.append(f"{operation}:{word}")
            return word

    def count(self, operation: str) -> int:
        """Number of requests of this kind."""
        return sum(line.startswith(f"{operation}:") for line in self.seen)


def _operation(method: str, path: str) -> str:
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    signed = "X-Amz-Signature" in query
    if method == "PUT" and signed:
        return "part" if "partNumber" in query else "put"
    if method == "GET" and signed:
        return "get"
    if method == "POST":
        return "create" if "uploads" in query else "complete"
    if method == "DELETE":
        return "abort" if "uploadId" in query else "delete"
    return "head" if method == "HEAD" else "api"


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@contextmanager
def fault_proxy(upstream: BucketConfig) -> Iterator[tuple[FaultProxy, BucketConfig]]:
    """A proxy before `upstream`, and the settings to reach it. It passes Host headers on, so signatures stay valid."""
    target = urlsplit(upstream.endpoint_url or "").netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle_any(self) -> None:
            operation = _operation(self.command, self.path)
            word = proxy.next_word(operation)
            if word == "reset-body":
                self.rfile.read(65_536)
                self.reset()
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if word == "reset":
                self.reset()
            elif word == "stall":
                self.stall()
            elif word == "expired":
                self.answer(403, _error_document("AccessDenied", "Request has expired"))
            elif word == "error200":
                self.answer(200, _error_document("InternalError", "We encountered an internal error."))
            elif word == "page":
                self.answer(200, b"<html><p>Please log in.<br></html>")
            elif word == "well-formed":
                self.answer(200, b"<html><p>Please log in.</p></html>")
            elif re.fullmatch(r"[345]\d\d", word):
                self.answer(int(word), _error_document("SlowDown" if word == "503" else "", ""))
            else:
                self.forward(word, body)

        def forward(self, word: str, body: bytes) -> None:
            headers = dict(self.headers)
            if word in ("whole", "wrong-range"):
                headers.pop("Range", None)
            if word == "flip-request":
                body = _flipped(body)
            connection = http.client.HTTPConnection(target, timeout=30)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in headers.items():
                    connection.putheader(name, value)
                with suppress(ConnectionError):  # the server may refuse before it has read the whole body
                    connection.endheaders(body)
                response = connection.getresponse()
                data = response.read()
            finally:
                connection.close()
            answer = [(n, v) for n, v in response.getheaders() if n.lower() not in _HOP_HEADERS]
            if word == "lost":
                self.reset()
                return
            status = response.status
            if word == "flip":
                data = _flipped(data)
            elif word == "no-etag":
                answer = [(n, '""' if n.lower() == "etag" else v) for n, v in answer]
            elif word == "short":
                data = data[:-1]
            elif word == "wrong-range":
                status, data = 206, data[:1000]
                answer.append(("Content-Range", "bytes 0-999/123456"))
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.begin(status, [*answer, ("Content-Length", length or "0")])
            if word in ("truncate", "reset-answer", "stall-answer"):
                self.wfile.write(data[: len(data) // 2])
                {"truncate": self.close, "reset-answer": self.reset, "stall-answer": self.stall}[word]()
            else:
                self.wfile.write(data)

        def begin(self, status: int, headers: list[tuple[str, str]]) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()

        def answer(self, status: int, body: bytes) -> None:
            extra = [("Retry-After", "0")] if status in (429, 503) else []
            extra += [("Location", "http://127.0.0.1:1/elsewhere")] if status in (301, 307) else []
            self.begin(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body))), *extra])
            if self.command != "HEAD":
                self.wfile.write(body)

        def close(self) -> None:
            self.close_connection = True

        def reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()  # sends the reset once the server closes the reading side too

        def stall(self) -> None:
            self.close_connection = True
            proxy.stalled.set()
            proxy.released.wait(60)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # resets are expected here

    server = Server(("127.0.0.1", 0), Handler)
    proxy = FaultProxy(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy, upstream.model_copy(update={"endpoint_url": f"http://127.0.0.1:{proxy.port}"})
    finally:
        proxy.released.set()
        server.shutdown()
        thread.join()
        with suppress(OSError):
            server.server_close()


_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


def _error_document(code: str, message: str) -> bytes:
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    return f"{head}<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
