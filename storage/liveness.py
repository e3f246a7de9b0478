"""Watches whether the embedded store still answers HTTP. A server can hang although its process runs."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from contextlib import closing


class LivenessProbe:
    """Asks a server again and again, and reports when it has not answered for `hung_after_s`.

    Any answer counts, also a refusal: the requests are not signed.
    """

    def __init__(self, address: str, *, hung_after_s: float, on_hung: Callable[[], None]) -> None:
        """`address` is the server's host and port.

        `on_hung` is called from the thread of `run`, and again after each further `hung_after_s` of silence.
        """
        self._address = address
        self._hung_after_s = hung_after_s
        self._pause_s = hung_after_s / 6
        self._on_hung = on_hung

    def run(self, stopping: threading.Event) -> None:
        """Asks until `stopping` is set."""
        answered = time.monotonic()
        while not stopping.wait(self._pause_s):
            if self._answers():
                answered = time.monotonic()
            elif time.monotonic() - answered >= self._hung_after_s:
                self._on_hung()
                answered = time.monotonic()

    def _answers(self) -> bool:
        with closing(http.client.HTTPConnection(self._address, timeout=self._pause_s)) as connection:
            try:
                connection.request("HEAD", "/")
                connection.getresponse()
            except (OSError, http.client.HTTPException):
                return False
        return True
