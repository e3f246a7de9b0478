"""Logs lines as the modules of storage do, from threads, too."""

from __future__ import annotations

import logging

from actors.logs import configure_logging, naming
from storage.wire import Wire

configure_logging()
configure_logging()
logger = logging.getLogger("storage.upload")


class NoWire:
    """A wire without faults."""

    def go_on(self, operation: str) -> None:
        pass


def task() -> None:
    logger.info("in a %s", "thread")


with naming(sandbox="box", request_id="r"):
    logger.warning("%s", "two\nlines")
    Wire.run(NoWire(), "put", [task, task], threads=2)  # type: ignore[arg-type]
logger.error("damaged")
logger.debug("details")
