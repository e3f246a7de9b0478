"""The life of a sandbox's actor: its beginning, the calls it serves, and its end. Knows no Ray.

The actor makes the sandbox for its first call. It leaves when the sandbox is idle, when it hands the sandbox over to
another node, and when another actor has taken the sandbox over.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from actors.errors import HoldfastError, SandboxInUseError, SandboxUnavailableError
from actors.host.error_filter import guarded, guarded_items
from actors.logs import log
from actors.metrics import QUEUE_LENGTH, SLEEPS, Meter
from actors.rpc.names import EXEC, MAILBOX
from actors.sandbox.activity import Activity, Usage
from actors.sandbox.admission import Admission

if TYPE_CHECKING:
    from actors.state.document import StateRead
    from storage.metadata import Checkpoint

_LAST_WORDS_S = 0.5
"""Time that a replaced or handed-over actor lives on, so that the answers of its calls arrive."""
_CALLS_END_S = 2.0
"""Time for running calls to end before a hand-over, and for the calls that it ended to return their errors."""
_UNCALLED_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Pauses in which a restarted actor waits for a call before each attempt to wake by itself. Sandboxes with waiting
callers wake first. The attempts end at last, so that the actor can sleep."""


class Owned(Protocol):
    """The sandbox's ownership."""

    @property
    def is_superseded(self) -> bool: ...


class Lived(Protocol):
    """The part of `LocalSandbox` that the life of its actor needs."""

    @property
    def is_awake(self) -> bool: ...
    @property
    def is_empty(self) -> bool: ...
    @property
    def must_stay(self) -> bool: ...
    @property
    def may_have_news(self) -> bool: ...
    @property
    def ownership(self) -> Owned: ...
    def come_back(self) -> None: ...
    def prepare(self, found: StateRead, *, wake: bool) -> None: ...
    def expect_command(self) -> None: ...
    def back_up_for_sleep(self) -> Sequence[Checkpoint]: ...
    def sleep(self, checkpoints: Sequence[Checkpoint] | None) -> None: ...
    def hand_over(self) -> None: ...
    def close(self) -> None: ...


class Process(Protocol):
    """The actor's process."""

    def was_restarted(self) -> bool:
        """Tells whether Ray has restarted the actor after a crash."""

    def leave(self, after_s: float) -> None:
        """Ends the actor through its mailbox, after so many seconds. Does not return."""

    def end(self) -> None:
        """Ends the process at once, as a crash would."""

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Calls `act` in another thread after so many seconds. Returns at once."""


B = TypeVar("B", bound=Lived)
T = TypeVar("T")


class ActorLife(Generic[B]):
    """The life of one sandbox's actor. Thread-safe."""

    def __init__(
        self,
        make: Callable[[], B],
        process: Process,
        meter: Meter,
        *,
        sleeps_in_bucket: bool,
        calls_end_s: float = _CALLS_END_S,
    ) -> None:
        """`make` makes the sandbox, and is called again after it failed. Cannot fail.

        `sleeps_in_bucket` says that an idle sandbox is backed up, so that its files need not stay on this node.
        """
        self._make = make
        self._process = process
        self._meter = meter
        self._sleeps_in_bucket = sleeps_in_bucket
        self._calls_end_s = calls_end_s
        self._activity = Activity()
        self._admission = Admission()
        self._making = threading.Lock()
        self._made: B | None = None
        self._is_ending = False
        self._called = threading.Event()

    def _sandbox(self) -> B:
        """Returns the sandbox; makes it on the first call."""
        if self._made is None:
            with self._making:
                if self._made is None:
                    self._made = self._make()
        return self._made

    def begin(self, wait: Callable[[float], bool] | None = None) -> None:
        """Makes the sandbox for the first call. An actor that Ray has restarted also wakes it if no call comes.

        `wait` waits so many seconds for a call, and returns True once there was one.
        """
        wait = wait or self._called.wait
        with contextlib.suppress(Exception):  # the next call fails likewise, and reports it
            self._sandbox()
        for pause_s in _UNCALLED_S:
            if wait(pause_s):
                return
            try:
                if self._process.was_restarted():
                    with self._activity.call():
                        self._sandbox().come_back()
                return
            except Exception as e:  # the bucket is away, or the service, which knows whether a node is lost
                log.warning("sandbox_not_back", error=type(e).__name__)

    def admit(self, lane: str | None, found: StateRead | None) -> bool:
        """Admits a call to a lane, and prepares the sandbox for it; see `SandboxHost.admit`.

        Returns True if the sandbox may have something to report once the call is served.
        """
        self._called.set()
        if lane is None:
            self._activity.touch()
        else:
            self._meter.add(QUEUE_LENGTH, lane, amount=self._ticket(lane))
        if lane == EXEC and self._made is not None and self._made.is_awake:
            self._made.expect_command()
        if found is not None:  # prepare while the call is on its way
            self._process.later(0, lambda: self._prepare(found, lane))
        return self._made is None or self._made.may_have_news

    def _ticket(self, lane: str) -> int:
        """Returns the number of calls that wait in the lane already."""
        before = self._admission.admit(lane)  # first, so that a refused call does not count as activity
        try:
            self._activity.touch()
        except SandboxUnavailableError:
            self._admission.withdraw(lane)
            raise
        return before

    def _prepare(self, found: StateRead, lane: str | None) -> None:
        """Prepares the sandbox for a call that is on its way, so that the call waits less."""
        with contextlib.suppress(Exception), self._activity.call():  # the call itself fails likewise, and reports it
            self._sandbox().prepare(found, wake=lane not in (None, MAILBOX))  # a mailbox call may be `destroy`

    def answer(self, act: Callable[[B], T]) -> T:
        """Answers a question. It does not count as activity, so it does not keep the sandbox awake."""
        try:
            return guarded(lambda: act(self._sandbox()))
        finally:
            self._end_if_superseded()

    def serve(self, lane: str, act: Callable[[B], T], *, was_admitted: bool = True) -> T:
        """Serves a call in `lane`. A call that continues a transfer needs no admission (`was_admitted` is False)."""
        with (
            self._admission.serving(lane, was_admitted=was_admitted),
            self._activity.call(goes_on=not was_admitted),
        ):
            return self.answer(act)

    def stream(self, lane: str, act: Callable[[B], Iterator[T]]) -> Iterator[T]:
        """Serves a call that answers with many items."""
        with self._admission.serving(lane), self._activity.call():
            try:
                yield from guarded_items(lambda: act(self._sandbox()))
            finally:
                self._end_if_superseded()

    def usage(self) -> Usage:
        """Returns the actor's current usage."""
        return self._activity.usage()

    def _end_if_superseded(self) -> None:
        """Ends the process shortly after this answer, if another actor has taken the sandbox over."""
        box = self._made
        if box is not None and box.ownership.is_superseded and not self._is_ending:
            self._is_ending = True
            log.error("superseded_actor_ends")
            self._process.later(_LAST_WORDS_S, lambda: self._end(box))

    def _end(self, box: B) -> None:
        try:
            box.close()
        except Exception as e:  # the node's sweeper does it
            log.warning("superseded_sandbox_not_closed", error=type(e).__name__)
        self._process.end()

    def close(self) -> None:
        """Ends everything that runs and unmounts everything, before the service stops."""
        self._called.set()
        if self._made is not None:
            self.answer(lambda box: box.close())

    def leave(self, idle_s: float) -> None:
        """Ends the actor if no call came for `idle_s`; see `SandboxHost.leave`."""
        if self._made is not None and self._made.is_empty:
            idle_s = 0.0
        idle_since = self._activity.idle_since(idle_s)
        if idle_since is None or (self._made is not None and self._made.must_stay):
            return
        with self._admission.serving(MAILBOX, was_admitted=False):
            checkpoints = self._back_up_for_sleep()
        if not self._activity.leave(idle_since):
            return
        try:
            if self._made is not None:
                if self._made.must_stay:
                    self._activity.stay()
                    return
                self.answer(lambda box: box.sleep(checkpoints))
        except HoldfastError as e:
            log.warning("sandbox_stays_awake", error=e.code)
            self._activity.stay()
            return
        if idle_s > 0:
            self._meter.add(SLEEPS)
        self._process.leave(0)

    def _back_up_for_sleep(self) -> Sequence[Checkpoint] | None:
        """Backs everything up if sandboxes sleep in the bucket. Returns None if the files stay on this node."""
        if self._made is None or not self._made.is_awake or not self._sleeps_in_bucket:
            return None
        try:
            return self.answer(lambda box: box.back_up_for_sleep())
        except HoldfastError as e:
            log.warning("files_stay_on_the_node", error=e.code)
            return None

    def close_door(self) -> None:
        """Refuses new calls. `hand_over` accepts calls again if it fails."""
        self._called.set()
        self._activity.close()

    def hand_over(self, *, force: bool) -> None:
        """Moves the sandbox into the bucket and ends the actor. Without `force`, fails while a call is being served."""
        with self._admission.serving(MAILBOX, was_admitted=False):
            try:
                self._activity.close()
                if not self._activity.wait_until_idle(self._calls_end_s) and not force:
                    raise SandboxInUseError(
                        "The sandbox is in use.", context={"outcome": "not_executed", "reason": "IN_USE"}
                    )
                self.answer(lambda box: box.hand_over())
            except BaseException:
                self._activity.stay()
                raise
            if not self._activity.wait_until_idle(self._calls_end_s):
                log.warning("answers_not_taken")
        self._activity.end()
        self._process.leave(_LAST_WORDS_S)
