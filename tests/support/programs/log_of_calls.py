"""Logs lines in the context of calls."""

from __future__ import annotations

import sys

from actors.logs import configure_logging, log, naming

configure_logging()
assert "structlog" not in sys.modules
with naming(sandbox="box", request_id="r"):
    with naming(sandbox="inner"):
        log.info("first", detail="two\nlines")
    log.warning("second")
log.error("third", sandbox="told")
