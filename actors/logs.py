"""The log of an actor: one JSON object per line on stderr, which Ray keeps per process.

structlog writes it. It is loaded with the first line, because that takes some 40 ms, and a process that has just been
started for somebody who waits seldom has anything to say.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

_named: ContextVar[Mapping[str, str]] = ContextVar("holdfast_log", default=MappingProxyType({}))
_in_json = False


def configure_logging() -> None:
    """From now on this process logs in JSON; no value of ours can break a line."""
    global _in_json
    _in_json = True


@contextmanager
def naming(**named: str) -> Iterator[None]:
    """Each line in JSON that is logged within the block carries these values, too."""
    token = _named.set({**_named.get(), **named})
    try:
        yield
    finally:
        _named.reset(token)


class Log:
    """What every module logs with: an event's name, and its details by name."""

    def info(self, event: str, **details: Any) -> None:
        """What an operator may want to know."""
        self._write("info", event, details)

    def warning(self, event: str, **details: Any) -> None:
        """What went wrong, and was dealt with."""
        self._write("warning", event, details)

    def error(self, event: str, **details: Any) -> None:
        """What went wrong, and needs somebody."""
        self._write("error", event, details)

    def _write(self, level: str, event: str, details: dict[str, Any]) -> None:
        with suppress(OSError, ValueError):  # a full disk, or a closed stream: no reason to fail for
            getattr(_structlog(_in_json).get_logger(), level)(event, **details)


log = Log()


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
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
    return structlog
