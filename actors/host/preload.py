"""The imports of a Ray worker, made as it starts, so that the first call to a sandbox need not make them.

Ray has redirected stdout and stderr to the worker's log by then. A full log disk must not end the worker.

The worker imports what every call needs at once, and the rest after `_IDLE_S`: a caller that waits for this worker to
start should not wait for the rest too.
"""

from __future__ import annotations

import gc
import importlib
import threading

from actors.logs import forgive_failed_output

_IDLE_S = 1.0
_NEEDED = ("actors.sandbox.facade", "actors.sandbox.host")
_REST = ("structlog", "re2", "actors.sandbox.backup", "actors.sandbox.restore")


def _load(modules: tuple[str, ...]) -> None:
    for module in modules:
        importlib.import_module(module)


def _load_the_rest() -> None:
    _load(_REST)
    from storage.s3_client import load_model

    load_model()


forgive_failed_output()
gc.disable()  # imported objects stay: collecting garbage among them takes a fifth of the time
try:
    _load(_NEEDED)
finally:
    gc.enable()
    gc.freeze()
_later = threading.Timer(_IDLE_S, _load_the_rest)
_later.daemon = True
_later.start()
