"""The log of an actor: one JSON object per line on stderr, which Ray keeps per process."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logging() -> None:
    """From now on this process logs in JSON; no value of ours can break a line."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
