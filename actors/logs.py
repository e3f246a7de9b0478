"""The log of each process of the service: one JSON object per line on stderr. Ray keeps that of each actor.

structlog writes it. The first line imports structlog, because that takes some 40 ms, and a process that was just
started for a waiting caller seldom logs anything.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO, cast

_named: ContextVar[Mapping[str, str]] = ContextVar("holdfast_log", default=MappingProxyType({}))
_in_json = False


def configure_logging() -> None:
    """Makes this process log in JSON, `storage` included, so that no value can break a line."""
    global _in_json
    _in_json = True
    storage = logging.getLogger("storage")
    if not any(isinstance(handler, _OfTheStandardLibrary) for handler in storage.handlers):
        storage.addHandler(_OfTheStandardLibrary())
    storage.setLevel(logging.INFO)


@contextmanager
def naming(**named: str) -> Iterator[None]:
    """Adds these values to each JSON line that is logged within the block."""
    token = _named.set({**_named.get(), **named})
    try:
        yield
    finally:
        _named.reset(token)


class Log:
    """The logger of every module: takes an event's name, and its details by name."""

    def info(self, event: str, **details: Any) -> None:
        """Logs an event that an operator may want to know."""
        self._write("info", event, details)

    def warning(self, event: str, **details: Any) -> None:
        """Logs a failure that was handled."""
        self._write("warning", event, details)

    def error(self, event: str, **details: Any) -> None:
        """Logs a failure that needs a person."""
        self._write("error", event, details)

    def _write(self, level: str, event: str, details: dict[str, Any]) -> None:
        with suppress(OSError, ValueError):  # outside of the service the stream may be closed
            getattr(_structlog(_in_json).get_logger(), level)(event, **details)


log = Log()


class _OfTheStandardLibrary(logging.Handler):
    """The handler that passes records of the standard library's logging on to `log`. `storage` uses no other."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line: the message is the event, and `logger` says where it comes from."""
        write = log.info if record.levelno < logging.WARNING else log.warning
        if record.levelno >= logging.ERROR:
            write = log.error
        write(record.getMessage(), logger=record.name)


class LogStream:
    """The stream of a process's log: its stderr. Never raises: it counts lines that cannot be written, and logs the
    count once lines can be written again.

    It bypasses the buffers of `sys.stderr`, which would keep a line that failed and write it with the next one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost = 0
        self._is_torn = False
        """True if only a part of the last line could be written."""

    def write(self, text: str) -> None:
        """Writes one line, with its end."""
        with self._lock:
            try:
                if self._lost:
                    self._put(_lines_lost(self._lost))
                    self._lost = 0
                self._put(text)
            except (OSError, ValueError):  # a full disk, a reader that has gone, a closed stream
                self._lost += 1

    def flush(self) -> None:
        """Does nothing: no line is buffered."""

    def _put(self, text: str) -> None:
        try:
            descriptor = sys.stderr.fileno()
        except OSError:  # a stream in memory
            sys.stderr.write(text)
            return
        rest = f"\n{text}".encode() if self._is_torn else text.encode()
        while rest:
            rest = rest[os.write(descriptor, rest) :]
            self._is_torn = bool(rest)


class ForgivingStream:
    """A text stream that ignores failed writes, since code that prints in passing cannot handle them.

    Ray prints in a worker before an actor's first task; if that raises, the worker dies. Source: measured, Ray 2.60.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text if it can be written. What stays in a buffer is tried again with the next write."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes the buffered text if it can be written."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive_failed_output() -> None:
    """Makes this process ignore failed writes to its stdout and stderr, such as to a full disk or a closed pipe."""
    sys.stdout = cast("TextIO", ForgivingStream(sys.stdout))
    sys.stderr = cast("TextIO", ForgivingStream(sys.stderr))


def _lines_lost(count: int) -> str:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"count": count, "event": "log_lines_lost", "level": "warning", "timestamp": now}
    return f"{json.dumps(line)}\n"


log_stream = cast("TextIO", LogStream())
"""This process's log stream. It has the two methods of a text stream that a logger needs."""


@functools.cache
def _structlog(in_json: bool) -> Any:
    import structlog

    if in_json:
        structlog.configure(
            processors=[
                lambda logger, method, line: {**_named.get(), **line},
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=structlog.WriteLoggerFactory(log_stream),
        )
    return structlog
