"""Finds out whether an HTTP server on this machine still answers. A process can live on and answer nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx


class LivenessProbe:
    """Asks a server again and again, and reports when it has not answered for `hung_after_s`.

    Any answer counts, also a refusal: the requests are not signed.
    """

    def __init__(self, url: str, *, hung_after_s: float, on_hung: Callable[[], None]) -> None:
        """`on_hung` is called from the thread of `run`, and again after each further `hung_after_s` of silence."""
        self._url = url
        self._hung_after_s = hung_after_s
        self._on_hung = on_hung

    def run(self, stopping: threading.Event) -> None:
        """Asks until `stopping` is set."""
        pause_s = self._hung_after_s / 6
        answered = time.monotonic()
        with httpx.Client(trust_env=False, timeout=pause_s) as client:
            while not stopping.wait(pause_s):
                if self._answers(client):
                    answered = time.monotonic()
                elif time.monotonic() - answered >= self._hung_after_s:
                    self._on_hung()
                    answered = time.monotonic()

    def _answers(self, client: httpx.Client) -> bool:
        try:
            client.head(self._url)
        except httpx.TransportError:
            return False
        return True
