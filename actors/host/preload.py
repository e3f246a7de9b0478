"""The imports of a worker, made as it starts, so that the first call to a sandbox need not make them.

By then Ray has put the worker's log in the place of its stdout and stderr: a full disk of the logs is to end no worker.

What every call needs is imported at once; the rest when the worker has waited for a moment, because one that is
started for somebody who waits should not take longer for it.
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
gc.disable()  # what is imported stays: looking through it again and again takes a fifth of the time
try:
    _load(_NEEDED)
finally:
    gc.enable()
    gc.freeze()
_later = threading.Timer(_IDLE_S, _load_the_rest)
_later.daemon = True
_later.start()
