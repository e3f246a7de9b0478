"""The Ray actor of one sandbox: a thin shell around `actors.sandbox.facade`, in a process of its own.

Lanes are Ray concurrency groups of a synchronous actor. The default group, left without `max_concurrency`, is the
mailbox: one call at a time, in order of arrival for each caller. `exec` carries commands; `files` carries changes and
listings of files; `reads` carries reads of files, which wait for their readers. `control` carries questions and
cancellations, and answers in about a millisecond while the others are busy.

Ray retries nothing: a call with an effect runs once, or its caller learns that the outcome is unknown.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from actors.errors import IN_USE, HoldfastError, SandboxUnavailableError
from actors.host.error_filter import guarded, guarded_items
from actors.host.observation import Watch, observed
from actors.logs import configure_logging, log
from actors.metrics import QUEUE_LENGTH, SLEEPS
from actors.rpc.cluster import times_restarted
from actors.rpc.names import EXEC, FILES, MAILBOX, READS
from actors.rpc.service_actor import is_node_lost, report_to_service
from actors.sandbox.activity import Activity, Usage
from actors.sandbox.admission import THREADS, Admission

if TYPE_CHECKING:
    from datetime import datetime

    from actors.config import SandboxConfig
    from actors.models import BackupOptions, ExecRequest, ForgetOptions, RestoreOptions
    from actors.sandbox.facade import LocalSandbox
    from actors.state.document import StateRead
    from storage.metadata import Checkpoint

LANES = {**{lane: threads for lane, threads in THREADS.items() if lane != MAILBOX}, "control": 8, "labels": 1}
_LAST_WORDS_S = 0.5
"""Time that a replaced or handed-over actor lives on, so that the answers of its calls arrive."""
_CALLS_END_S = 2.0
"""Time for running calls to end before a hand-over, and for the calls that it ended to return their errors."""
_UNCALLED_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Pauses in which a restarted actor waits for a call before each attempt to wake by itself. Sandboxes with waiting
callers wake first. The attempts end at last, so that the actor can sleep."""
_STREAM_AHEAD = 16
"""Number of items that a stream may be ahead of its reader: 16 MiB of a file."""

T = TypeVar("T")


@observed
class SandboxHost:
    """The actor of one sandbox. `__init__` does nothing that can fail: an error there would lose its class."""

    def __init__(self, tenant: str, sandbox_id: str, config: SandboxConfig) -> None:
        self._address = (tenant, sandbox_id, config)
        self.watch = Watch(tenant=tenant, sandbox=sandbox_id)
        self._activity = Activity()
        self._admission = Admission()
        self._making = threading.Lock()
        self._made: LocalSandbox | None = None
        self._ending = False
        self._called = threading.Event()
        threading.Thread(target=self._begin, name="begin", daemon=True).start()

    def _sandbox(self) -> LocalSandbox:
        """Returns the sandbox; makes it on the first call."""
        if self._made is None:
            with self._making:
                if self._made is None:
                    self._made = self._make()
        return self._made

    def _begin(self) -> None:
        """Makes the sandbox for the first call. An actor that Ray has restarted also wakes it if no call comes."""
        with contextlib.suppress(Exception):  # the next call fails likewise, and reports it
            self._sandbox()
        for pause_s in _UNCALLED_S:
            if self._called.wait(pause_s):
                return
            try:
                if ray.get_runtime_context().was_current_actor_reconstructed:
                    with self._activity.call():
                        self._sandbox().come_back()
                return
            except Exception as e:  # the bucket is away, or the service, which knows whether a node is lost
                log.warning("sandbox_not_back", error=type(e).__name__)

    def _get_ready(self, found: StateRead, lane: str | None) -> None:
        """Prepares the sandbox for a call that is on its way, so that the call waits less."""
        with contextlib.suppress(Exception), self._activity.call():  # the call itself fails likewise, and reports it
            self._sandbox().prepare(found, wake=lane not in (None, MAILBOX))  # a mailbox call may be `destroy`

    def _make(self) -> LocalSandbox:
        from actors.bucket import open_catalog
        from actors.config import on_this_node
        from actors.faults import reason_of
        from actors.node import actor_group, memory
        from actors.node.errors import DriverUnavailableError, NodeError
        from actors.node_layout import NodeLayout, choose_driver
        from actors.sandbox.facade import LocalSandbox

        configure_logging()
        memory.give_rank(memory.Rank.SANDBOX)
        tenant, sandbox_id, config = self._address
        config = on_this_node(config)
        self.watch.report(report_to_service)
        try:
            actor_group.enter(NodeLayout(config.node).cgroup)
            return LocalSandbox(
                tenant,
                sandbox_id,
                config,
                driver=choose_driver(config.node),
                catalog=open_catalog(config),
                cluster_node=ray.get_runtime_context().get_node_id(),
                is_lost=is_node_lost,
                meter=self.watch.tally,
            )
        except (NodeError, OSError) as e:
            reason, sentence = reason_of(e)
            log.error("sandbox_not_made", reason=reason, error=type(e).__name__)
            raise SandboxUnavailableError(
                f"This node cannot run sandboxes: {sentence}.",
                hint=(e.hint if isinstance(e, DriverUnavailableError) else None) or "Run `holdfast doctor` on it.",
                context={"outcome": "not_executed", "reason": reason},
            ) from None

    def _answer(self, act: Callable[[LocalSandbox], T]) -> T:
        """Answers a question. It does not count as activity, so it does not keep the sandbox awake."""
        try:
            return guarded(lambda: act(self._sandbox()))
        finally:
            self._end_if_superseded()

    def _serve(self, lane: str, act: Callable[[LocalSandbox], T], *, was_admitted: bool = True) -> T:
        """Serves a call in `lane`. A call that continues a transfer needs no admission (`was_admitted` is False)."""
        with (
            self._admission.serving(lane, was_admitted=was_admitted),
            self._activity.call(goes_on=not was_admitted),
        ):
            return self._answer(act)

    def _stream(self, lane: str, act: Callable[[LocalSandbox], Iterator[T]]) -> Iterator[T]:
        with self._admission.serving(lane), self._activity.call():
            try:
                yield from guarded_items(lambda: act(self._sandbox()))
            finally:
                self._end_if_superseded()

    def _end_if_superseded(self) -> None:
        """Ends the process shortly after this answer, if another actor has taken the sandbox over."""
        if self._made is not None and self._made.ownership.is_superseded and not self._ending:
            self._ending = True
            log.error("superseded_actor_ends")
            threading.Timer(_LAST_WORDS_S, self._end, args=(self._made,)).start()

    def _end(self, box: LocalSandbox) -> None:
        try:
            box.close()
        except Exception as e:  # the node's sweeper does it
            log.warning("superseded_sandbox_not_closed", error=type(e).__name__)
        os._exit(1)

    # --- mailbox

    def create_backup(self, options: BackupOptions, idempotency_key: str | None = None) -> Any:
        return self._serve(MAILBOX, lambda box: box.create_backup(options, idempotency_key=idempotency_key))

    def restore_backup(self, options: RestoreOptions) -> Any:
        return self._serve(MAILBOX, lambda box: box.restore_backup(options))

    def forget(self, options: ForgetOptions) -> Any:
        return self._serve(MAILBOX, lambda box: box.forget(options))

    def destroy(self) -> None:
        self._serve(MAILBOX, lambda box: box.destroy())

    def close(self) -> None:
        """Ends everything that runs and unmounts everything, before the service stops."""
        self._called.set()
        if self._made is not None:
            self._answer(lambda box: box.close())

    def leave(self, idle_s: float) -> None:
        """Ends the actor if no call came for `idle_s`. The sandbox keeps its files; the next call makes a new actor.

        The actor of a destroyed sandbox waits only until its calls have ended. Other processes send this call: an actor
        that sent it to itself would wait for its own end.
        """
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
                self._answer(lambda box: box.sleep(checkpoints))
        except HoldfastError as e:
            log.warning("sandbox_stays_awake", error=e.code)
            self._activity.stay()
            return
        if idle_s > 0:
            self.watch.tally.add(SLEEPS)
        self.watch.flush(report_to_service)
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    def _back_up_for_sleep(self) -> list[Checkpoint] | None:
        """Backs everything up if sandboxes sleep in the bucket. Returns None if the files stay on this node."""
        _, _, config = self._address
        if self._made is None or not self._made.is_awake or config.on_sleep == "keep" or config.bucket is None:
            return None
        try:
            return self._answer(lambda box: box.back_up_for_sleep())
        except HoldfastError as e:
            log.warning("files_stay_on_the_node", error=e.code)
            return None

    @ray.method(concurrency_group="control")
    def usage(self) -> tuple[str, Usage]:
        """Returns Ray's id of the actor's node, and the actor's usage."""
        return ray.get_runtime_context().get_node_id(), self._activity.usage()

    @ray.method(concurrency_group="control")
    def close_door(self) -> None:
        """Refuses new calls. `hand_over`, which follows in the mailbox, accepts calls again if it fails."""
        self._called.set()
        self._activity.close()

    def hand_over(self, force: bool) -> None:
        """Moves the sandbox into the bucket and ends the actor. Without `force`, fails while a call is being served.

        The node's `NodeHost` sends it after `close_door`, when the node is being drained.
        """
        with self._admission.serving(MAILBOX, was_admitted=False):
            try:
                self._activity.close()
                if not self._activity.wait_until_idle(_CALLS_END_S) and not force:
                    raise SandboxUnavailableError(
                        "The sandbox is in use.", context={"outcome": "not_executed", "reason": IN_USE}
                    )
                self._answer(lambda box: box.hand_over())
            except BaseException:
                self._activity.stay()
                raise
            if not self._activity.wait_until_idle(_CALLS_END_S):
                log.warning("answers_not_taken")
        self._activity.end()
        self.watch.flush(report_to_service)
        time.sleep(_LAST_WORDS_S)
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    # --- exec and files

    @ray.method(concurrency_group="exec", num_returns="streaming", _generator_backpressure_num_objects=_STREAM_AHEAD)
    def exec(self, command_id: str, request: ExecRequest) -> Iterator[Any]:
        yield from self._stream(EXEC, lambda box: box.exec(command_id, request))

    @ray.method(concurrency_group="reads", num_returns="streaming", _generator_backpressure_num_objects=_STREAM_AHEAD)
    def read_file(self, transfer_id: str, path: str) -> Iterator[Any]:
        yield from self._stream(READS, lambda box: box.read_file(transfer_id, path))

    @ray.method(concurrency_group="reads", num_returns="streaming", _generator_backpressure_num_objects=_STREAM_AHEAD)
    def persist(self, command_id: str, excludes: Sequence[str] = ()) -> Iterator[Any]:
        yield from self._stream(READS, lambda box: box.persist(command_id, excludes))

    @ray.method(concurrency_group="files")
    def open_file(self, path: str, mode: int | None) -> str:
        return self._serve(FILES, lambda box: box.open_file(path, mode))

    @ray.method(concurrency_group="files")
    def open_hydrate(self) -> str:
        return self._serve(FILES, lambda box: box.open_hydrate())

    @ray.method(concurrency_group="files")
    def send(self, transfer_id: str, data: bytes) -> None:
        self._serve(FILES, lambda box: box.send(transfer_id, data), was_admitted=False)

    @ray.method(concurrency_group="files")
    def commit(self, transfer_id: str) -> None:
        self._serve(FILES, lambda box: box.commit(transfer_id), was_admitted=False)

    @ray.method(concurrency_group="control")
    def abort(self, transfer_id: str) -> None:
        self._answer(lambda box: box.abort(transfer_id))

    @ray.method(concurrency_group="files")
    def delete_file(self, path: str) -> None:
        self._serve(FILES, lambda box: box.delete_file(path))

    @ray.method(concurrency_group="files")
    def list_files(self, path: str) -> Any:
        return self._serve(FILES, lambda box: box.list_files(path))

    # --- control

    @ray.method(concurrency_group="control")
    def ping(self) -> bool:
        return True

    @ray.method(concurrency_group="control")
    def admit(self, lane: str | None, found: StateRead | None = None) -> tuple[str, int, bool]:
        """Admits a call to a lane; callers send this before each call that may have to wait.

        Args:
            lane: the call's lane; None for a caller that needs the actor, but no admission.
            found: the state that the service, which has just made this actor, found in the bucket; None if unknown.

        Returns:
            Ray's id of the actor's node; the number of times that Ray has restarted this actor; and True if `notice`
            may have something to report once the call is served.

        Raises:
            TooManyCallsError, SandboxUnavailableError: the call was not admitted.
        """
        self._called.set()
        if lane is None:
            self._activity.touch()
        else:
            self.watch.tally.add(QUEUE_LENGTH, lane, amount=self._admit(lane))
        if lane == EXEC and self._made is not None and self._made.is_awake:
            self._made.expect_command()
        if found is not None:  # prepare while the call is on its way
            threading.Thread(target=self._get_ready, args=(found, lane), name="ready", daemon=True).start()
        has_news = self._made is None or self._made.may_have_news
        return ray.get_runtime_context().get_node_id(), self._restarts, has_news

    def _admit(self, lane: str) -> int:
        before = self._admission.admit(lane)  # first, so that a refused call does not count as activity
        try:
            self._activity.touch()
        except SandboxUnavailableError:
            self._admission.withdraw(lane)
            raise
        return before

    @functools.cached_property
    def _restarts(self) -> int:
        return times_restarted(str(ray.get_runtime_context().get_actor_id()))

    @ray.method(concurrency_group="control")
    def info(self) -> Any:
        return self._answer(lambda box: box.info())

    @ray.method(concurrency_group="control")
    def notice(self) -> Any:
        """Returns the sandbox's recovery if no caller has confirmed yet that it knows of it; otherwise None."""
        return self._answer(lambda box: box.notice())

    @ray.method(concurrency_group="labels")
    def told(self, at: datetime) -> None:
        """Notes that a caller knows of the recovery that began at this time."""
        self._answer(lambda box: box.ownership.told(at))

    @ray.method(concurrency_group="labels")
    def relabel(self) -> None:
        """Reads the labels anew. A client sends it after it has changed them in the bucket."""
        self._answer(lambda box: box.ownership.relabel())

    @ray.method(concurrency_group="control")
    def operation(self) -> Any:
        return self._answer(lambda box: box.operation())

    @ray.method(concurrency_group="control")
    def cancel(self) -> bool:
        return self._answer(lambda box: box.cancel())

    @ray.method(concurrency_group="control")
    def stop(self, name: str) -> bool:
        return self._answer(lambda box: box.stop(name))
