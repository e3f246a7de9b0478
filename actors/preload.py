"""Imported by every worker as it starts: what the first call to a sandbox would otherwise import and load.

What every call needs is imported at once; the rest when the worker has waited for a moment, because one that is
started for somebody who waits should not take longer for it.
"""

from __future__ import annotations

import gc
import threading

_IDLE_S = 1.0


def _load_the_rest() -> None:
    from storage.s3_client import load_model

    load_model()


gc.disable()  # what is imported stays: looking through it again and again takes a fifth of the time
try:
    import actors.sandbox
    import actors.sandbox_host  # noqa: F401
finally:
    gc.enable()
    gc.freeze()
_later = threading.Timer(_IDLE_S, _load_the_rest)
_later.daemon = True
_later.start()
