"""The observation of actors: each of their calls is counted, timed, and logged under the id of its request.

One decorator of an actor's class does it for all its methods.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from actors.errors import HoldfastError, TurnedAwayError
from actors.logs import log, naming
from actors.metrics import CALL_SECONDS, CALLS, Counts, Tally
from actors.request_ids import ARGUMENT

REPORT_EVERY_S = 5.0
_OF_THE_SERVICE = ("close_all", "is_lost", "metrics", "report")
_OF_SANDBOXES = ("acknowledge", "close", "close_door", "hand_over", "leave", "notice", "ping", "relabel", "usage")
_HOUSEKEEPING = frozenset((*_OF_THE_SERVICE, *_OF_SANDBOXES))
"""Methods that serve no user's call, and so are not counted."""


class Watch:
    """The counts of one actor, and the fields of all its log lines."""

    def __init__(self, **always: str) -> None:
        """`always` are the fields of every log line of a call. Cannot fail."""
        self.tally = Tally()
        self._always = always
        self._sending = threading.Lock()
        self._reporting = False

    @contextlib.contextmanager
    def call(self, kind: str, request_id: str | None) -> Iterator[None]:
        """Counts and times the call that the block serves, and sets the fields of its log lines."""
        named = self._always if request_id is None else {**self._always, "request_id": request_id}
        began, outcome = time.perf_counter(), "ok"
        with naming(**named):
            try:
                yield
            except TurnedAwayError:  # the client sends the call again, and that counts
                outcome = ""
                raise
            except HoldfastError as e:
                outcome = e.code
                raise
            except GeneratorExit:
                outcome = "closed"
                raise
            except BaseException:
                outcome = "INTERNAL"
                raise
            finally:
                if outcome and _counts(kind, outcome):
                    self.tally.add(CALLS, kind, outcome)
                    self.tally.add(CALL_SECONDS, kind, amount=time.perf_counter() - began)

    def report(self, send: Callable[[Counts], Any]) -> None:
        """Begins to send new counts by `send`, every `REPORT_EVERY_S` at most. Repeatable. See `flush`."""
        if self._reporting:
            return
        self._reporting = True
        threading.Thread(target=self._keep_reporting, args=(send,), name="metrics", daemon=True).start()

    def _keep_reporting(self, send: Callable[[Counts], Any]) -> None:
        while True:
            self.tally.changed.wait()
            time.sleep(REPORT_EVERY_S)
            self.flush(send)

    def flush(self, send: Callable[[Counts], Any]) -> None:
        """Sends the counts since the last report. Counts are kept for the next one if `send` raises HoldfastError."""
        with self._sending:
            self.tally.changed.clear()
            counts = self.tally.drain()
            if not counts:
                return
            try:
                send(counts)
            except HoldfastError as e:  # the service's actor is away
                log.info("metrics_not_reported", error=e.code)
                self.tally.merge(counts)


def _counts(kind: str, outcome: str) -> bool:
    """Tells whether a call counts: not housekeeping, and of requests for admission only those that were refused."""
    return kind not in _HOUSEKEEPING and not (kind == "admit" and outcome == "ok")


class Observable(Protocol):
    """An actor that can be observed."""

    watch: Watch


H = TypeVar("H", bound=Observable)


def observed(host: type[H]) -> type[H]:
    """Decorates an actor's class: each public method takes the id of its request, and its calls are observed."""
    for name, method in list(vars(host).items()):
        if not name.startswith("_") and inspect.isfunction(method):
            setattr(host, name, _observed(name, method))
    return host


def _observed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Observable, *args: Any, **kwargs: Any) -> Any:
        with self.watch.call(name, kwargs.pop(ARGUMENT, None)):
            return method(self, *args, **kwargs)

    def stream(self: Observable, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self.watch.call(name, kwargs.pop(ARGUMENT, None)):
            yield from method(self, *args, **kwargs)

    observing: Any = functools.update_wrapper(stream if inspect.isgeneratorfunction(method) else call, method)
    # Ray refuses arguments that the signature does not name, and would read that of `__wrapped__`.
    del observing.__wrapped__
    signature = inspect.signature(method)
    argument = inspect.Parameter(ARGUMENT, inspect.Parameter.KEYWORD_ONLY, default=None)
    observing.__signature__ = signature.replace(parameters=[*signature.parameters.values(), argument])
    return observing  # type: ignore[no-any-return]
