"""One run of `rclone serve s3`, from its fork to its end."""

from __future__ import annotations

import logging
import re
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_READY = re.compile(r"Starting s3 server on \[http://127\.0\.0\.1:\d+/\]")


@dataclass(frozen=True, slots=True)
class RcloneEnd:
    """The end of a run.

    `status` is the server's exit status, or None if it was not forked; `last_words` is its last line.
    """

    status: int | None
    last_words: str


class RcloneRun:
    """A server that the thread of `until_end` forks; the kernel kills it if that thread ends first."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], *, listening: Callable[[], None]) -> None:
        """`listening` is called once, from the thread of `until_end`, when the server accepts connections."""
        self._argv = list(argv)
        self._environment = dict(environment)
        self._listening = listening
        self._lock = threading.Lock()
        self._is_unwanted = False
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """The id of the server's process, while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def until_end(self) -> RcloneEnd:
        """Forks the server, reads what it logs, and returns when it has ended. Called once."""
        listened, last_words = False, ""
        try:
            with self._lock:
                if self._is_unwanted:
                    return RcloneEnd(None, "")
                process = self._process = self._fork()
        except OSError as e:
            return RcloneEnd(None, e.strerror or type(e).__name__)
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                last_words = line.strip() or last_words
                if not listened and _READY.search(line):
                    listened = True
                    self._listening()
                logger.debug("rclone: %s", line.rstrip())
        return RcloneEnd(process.wait(), last_words)

    def _fork(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._argv,
            env=self._environment,
            umask=0o077,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def kill(self) -> None:
        """Ends the server by force, without waiting for its end."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def end(self, *, timeout_s: float) -> None:
        """Ends the server, by force after `timeout_s`, and waits for its end. A server not yet forked never will be."""
        with self._lock:
            self._is_unwanted = True
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
