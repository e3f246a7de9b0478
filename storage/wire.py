"""The connections of one transfer: sends presigned requests, retries them, counts their bytes, can be interrupted.

Requests go through httpx's transport rather than its client: the client logs every URL, follows redirects, keeps
cookies and reads proxies from the environment, none of which may happen to a presigned URL.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Self, TypeVar

import httpx
import tenacity

from storage.attempts import pauses
from storage.config import TransferConfig
from storage.errors import IntegrityError, StorageError, StoreUnavailableError, TransferCancelledError
from storage.store import SignedRequest
from storage.translate import answered, error_body, raised

T = TypeVar("T")
Progress = Callable[[int], None]

CHUNK_BYTES = 256 * 1024
_MAX_RETRY_AFTER_S = 60.0
_DAMAGE_TRIES = 2
_POLL_S = 0.1


class Meter:
    """Counts the bytes that one part has moved, and subtracts them when the part is tried again."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._counted = 0

    def add(self, count: int) -> None:
        self._counted += count
        self._progress(count)

    def undo(self) -> None:
        if self._counted:
            counted, self._counted = self._counted, 0
            self._progress(-counted)


class Wire:
    """The connections of one transfer of one object."""

    def __init__(self, bucket: str, key: str, config: TransferConfig, cancelled: threading.Event) -> None:
        self._bucket = bucket
        self._key = key
        self._config = config
        self._cancelled = cancelled
        self._stop = threading.Event()
        self._sockets: list[socket.socket] = []
        self._opening = threading.Lock()
        self._opened: httpx.HTTPTransport | None = None
        # The read and write timeouts bound each silence, not the whole transfer.
        timeout = httpx.Timeout(config.idle_timeout_s, connect=config.connect_timeout_s, pool=None)
        self._extensions = {"timeout": timeout.as_dict(), "trace": self._trace}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened.close()

    def _transport(self, url: str) -> httpx.HTTPTransport:
        """The connections, to the store of this URL."""
        with self._opening:
            if self._opened is None:
                most = self._config.concurrency
                limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
                tls = _tls() if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                self._opened = httpx.HTTPTransport(verify=tls, trust_env=False, limits=limits)
            return self._opened

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._sockets.append(info["return_value"].get_extra_info("socket"))

    def interrupt(self) -> None:
        """Ends every thread of this transfer: at its next chunk, or now if it waits for the network."""
        self._stop.set()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def fail(self, cls: type[StorageError], operation: str, detail: str | None = None) -> StorageError:
        """Makes an error with the bucket and the object filled in."""
        return cls(operation, bucket=self._bucket, key=self._key, detail=detail)

    def go_on(self, operation: str) -> None:
        """Raises TransferCancelledError once the transfer is cancelled or has failed elsewhere."""
        if self._stop.is_set() or self._cancelled.is_set():
            raise self.fail(TransferCancelledError, operation)

    @contextmanager
    def exchange(
        self,
        operation: str,
        method: str,
        signed: SignedRequest,
        *,
        headers: Mapping[str, str] | None = None,
        body: Iterable[bytes] | None = None,
    ) -> Iterator[httpx.Response]:
        """Sends one signed request and yields the answer, whose body is still unread. Raises for anything but a 2xx."""
        self.go_on(operation)
        try:
            request = httpx.Request(
                method,
                signed.url,
                headers={"Accept-Encoding": "identity", **signed.headers, **(headers or {})},
                content=body,
                extensions=self._extensions,
            )
            response = self._transport(signed.url).handle_request(request)
            try:
                if not response.is_success:
                    raise self._refusal(operation, response)
                yield response
            finally:
                response.close()
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as e:
            self.go_on(operation)
            # The text of these exceptions may hold the URL; their name does not.
            raise self.fail(raised(e), operation, type(e).__name__) from None

    def _refusal(self, operation: str, response: httpx.Response) -> StorageError:
        body = b""
        for chunk in response.iter_raw():
            body += chunk
            if len(body) >= 16_384:
                break
        code, message = error_body(body)
        cls = answered(response.status_code, code, message)
        error = self.fail(cls, operation, f"HTTP {response.status_code} {code}".rstrip())
        if isinstance(error, StoreUnavailableError):
            error.retry_after_s = _retry_after_s(response.headers.get("Retry-After"))
        return error

    def retried(self, attempt: Callable[[], T], meter: Meter) -> T:
        """Runs `attempt` until it succeeds, fails for good, or the attempts are used up.

        Damaged bytes get a second try, in case the network damaged them, and no third.
        """

        def once() -> T:
            try:
                return attempt()
            except BaseException:
                meter.undo()
                raise

        jitter = pauses(self._config)

        def pause_s(state: tenacity.RetryCallState) -> float:
            asked = getattr(_error(state), "retry_after_s", None)
            return jitter(state) if asked is None else max(jitter(state), asked)

        def is_worth_it(state: tenacity.RetryCallState) -> bool:
            error = _error(state)
            if isinstance(error, IntegrityError):
                return state.attempt_number < _DAMAGE_TRIES
            return isinstance(error, StorageError) and error.retryable

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._config.attempts),
            wait=pause_s,
            retry=is_worth_it,
            sleep=tenacity.sleep_using_event(self._stop),
            reraise=True,
        )
        return retrying(once)

    def run(self, operation: str, tasks: Sequence[Callable[[], T]], *, threads: int) -> list[T]:
        """Runs tasks in threads, started in their order. The first failure ends all; no thread is left behind."""
        with ThreadPoolExecutor(min(threads, len(tasks)), thread_name_prefix="transfer") as pool:
            futures = [pool.submit(copy_context().run, task) for task in tasks]  # log lines keep the call's names
            try:
                pending = set(futures)
                while pending:
                    done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    self.go_on(operation)
            except BaseException:
                for future in futures:
                    future.cancel()
                self.interrupt()
                raise
            return [future.result() for future in futures]


@functools.cache
def _tls() -> ssl.SSLContext:
    """The process's list of trusted certificates. Reading it takes 25 to 75 ms and 2 MB (own measurement)."""
    return httpx.create_ssl_context(trust_env=False)


def _error(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _retry_after_s(value: str | None) -> float | None:
    """The seconds in a Retry-After header, at most 60; the header has two forms. Source: RFC 9110, 10.2.3."""
    if value is None:
        return None
    if value.strip().isdigit():
        return min(float(value), _MAX_RETRY_AFTER_S)
    try:
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except ValueError:
        return None
    return min(max(at - time.time(), 0.0), _MAX_RETRY_AFTER_S)
