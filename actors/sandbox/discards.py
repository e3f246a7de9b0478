"""The discards of layers that a restore has replaced: in a thread of their own, so that the restore need not wait.

Unmounting an overlay syncs the whole file system of its upper, which takes from milliseconds to seconds.
"""

from __future__ import annotations

import threading
from collections import deque
from contextvars import copy_context

from actors.logs import log
from actors.node.errors import NodeError
from actors.node.layers import Layer, Layers

_AHEAD = 16
"""Number of layers that may wait for their discard: they still take room on the disk."""


class Discards:
    """Discards the layers of one sandbox, one after the other. Thread-safe.

    A layer that is not discarded when the process ends, or that cannot be discarded, is removed when the sandbox wakes.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._left: deque[Layer] = deque()
        """The layers that are not discarded yet, with the one that is being discarded."""
        self._changed = threading.Condition()
        self._is_working = False

    def add(self, layer: Layer) -> None:
        """Discards a layer that is no longer shown, soon. Waits only if too many others wait for theirs."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._left) < _AHEAD)
            self._left.append(layer)
            if self._is_working:
                return
            self._is_working = True
        try:
            threading.Thread(target=copy_context().run, args=(self._work,), name="discards", daemon=True).start()
        except RuntimeError:  # Python raises it where a thread's start fails with EAGAIN
            self._work()

    def wait(self) -> None:
        """Waits until every layer is discarded, or has failed to be."""
        with self._changed:
            self._changed.wait_for(lambda: not self._left)

    def _work(self) -> None:
        while (layer := self._next()) is not None:
            try:
                self._layers.discard(layer)
            except (NodeError, OSError, RuntimeError) as e:
                log.warning("layer_left_behind", layer=layer.id, error=type(e).__name__)
            finally:
                with self._changed:
                    self._left.popleft()
                    self._changed.notify_all()

    def _next(self) -> Layer | None:
        with self._changed:
            self._is_working = bool(self._left)
            return self._left[0] if self._left else None
