"""The Ray actor of one sandbox: a thin shell around `actors.sandbox.facade`, in a process of its own.

Lanes are Ray concurrency groups of a synchronous actor. The default group, left without `max_concurrency`, is the
mailbox: one call at a time, in order of arrival for each caller. `exec` carries commands, and `input` what they read,
which waits for them; `files` carries changes and listings of files; `reads` carries reads of files, which wait for
their readers. `control` carries questions and cancellations, and answers in about a millisecond while the others are
busy.

Ray retries nothing: a call with an effect runs once, or its caller learns that the outcome is unknown.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray

from actors.errors import SandboxUnavailableError
from actors.host.observation import Watch, observed
from actors.logs import configure_logging, log
from actors.rpc.cluster import times_restarted
from actors.rpc.names import EXEC, FILES, INPUT, MAILBOX, READS
from actors.rpc.service_actor import is_node_lost, note_backup, report_to_service
from actors.sandbox.activity import Usage
from actors.sandbox.actor_life import ActorLife
from actors.sandbox.admission import THREADS

if TYPE_CHECKING:
    from datetime import datetime

    from actors.config import SandboxConfig
    from actors.models import BackupOptions, ExecRequest, ForgetOptions, LiveChangesOptions, RestoreOptions
    from actors.sandbox.facade import LocalSandbox
    from actors.state.document import StateRead

LANES = {**{lane: threads for lane, threads in THREADS.items() if lane != MAILBOX}, "control": 8, "labels": 1}
_STREAM_AHEAD = 16
"""Number of items that a stream may be ahead of its reader: 16 MiB of a file."""


class _Process:
    """See `actor_life.Process`."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def was_restarted(self) -> bool:
        """See `actor_life.Process`."""
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)

    def leave(self, after_s: float) -> None:
        """See `actor_life.Process`. Reports the last counts before."""
        self._watch.flush(report_to_service)
        time.sleep(after_s)
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """See `actor_life.Process`."""
        os._exit(1)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """See `actor_life.Process`."""
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        timer.start()


@observed
class SandboxHost:
    """The actor of one sandbox. `__init__` does nothing that can fail: an error there would lose its class."""

    def __init__(self, tenant: str, sandbox_id: str, config: SandboxConfig) -> None:
        self._address = (tenant, sandbox_id, config)
        self.watch = Watch(tenant=tenant, sandbox=sandbox_id)
        self._life: ActorLife[LocalSandbox] = ActorLife(
            self._make,
            _Process(self.watch),
            self.watch.tally,
            sleeps_in_bucket=config.on_sleep != "keep" and config.bucket is not None,
        )
        threading.Thread(target=self._life.begin, name="begin", daemon=True).start()

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
                on_backup=lambda: note_backup(tenant, sandbox_id),
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

    # --- mailbox

    def create_backup(self, options: BackupOptions, idempotency_key: str | None = None) -> Any:
        return self._life.serve(MAILBOX, lambda box: box.create_backup(options, idempotency_key=idempotency_key))

    def restore_backup(self, options: RestoreOptions) -> Any:
        return self._life.serve(MAILBOX, lambda box: box.restore_backup(options))

    def forget(self, options: ForgetOptions) -> Any:
        return self._life.serve(MAILBOX, lambda box: box.forget(options))

    def destroy(self) -> None:
        self._life.serve(MAILBOX, lambda box: box.destroy())

    def close(self) -> None:
        """Ends everything that runs and unmounts everything, before the service stops."""
        self._life.close()

    def leave(self, idle_s: float) -> None:
        """Ends the actor if no call came for `idle_s`. The sandbox keeps its files; the next call makes a new actor.

        The actor of a destroyed sandbox waits only until its calls have ended. Other processes send this call: an actor
        that sent it to itself would wait for its own end.
        """
        self._life.leave(idle_s)

    @ray.method(concurrency_group="control")
    def usage(self) -> tuple[str, Usage]:
        """Returns Ray's id of the actor's node, and the actor's usage."""
        return ray.get_runtime_context().get_node_id(), self._life.usage()

    @ray.method(concurrency_group="control")
    def close_door(self) -> None:
        """Refuses new calls. `hand_over`, which follows in the mailbox, accepts calls again if it fails."""
        self._life.close_door()

    def hand_over(self, force: bool) -> None:
        """Moves the sandbox into the bucket and ends the actor. Without `force`, fails while a call is being served.

        The node's `NodeHost` sends it after `close_door`, when the node is being drained.
        """
        self._life.hand_over(force=force)

    # --- exec and files

    @ray.method(concurrency_group="exec", num_returns="streaming", _generator_backpressure_num_objects=_STREAM_AHEAD)
    def exec(self, command_id: str, request: ExecRequest) -> Iterator[Any]:
        yield from self._life.stream(EXEC, lambda box: box.exec(command_id, request))

    @ray.method(concurrency_group="input")
    def send_input(self, command_id: str, writer: str, data: bytes) -> bool:
        return self._life.serve(INPUT, lambda box: box.send_input(command_id, writer, data), was_admitted=False)

    @ray.method(concurrency_group="input")
    def end_input(self, command_id: str, writer: str) -> None:
        self._life.serve(INPUT, lambda box: box.end_input(command_id, writer), was_admitted=False)

    @ray.method(concurrency_group="control")
    def cut_input(self, command_id: str, writer: str) -> None:
        self._life.answer(lambda box: box.cut_input(command_id, writer))

    @ray.method(concurrency_group="reads", num_returns="streaming", _generator_backpressure_num_objects=_STREAM_AHEAD)
    def read_file(self, transfer_id: str, path: str) -> Iterator[Any]:
        yield from self._life.stream(READS, lambda box: box.read_file(transfer_id, path))

    @ray.method(concurrency_group="reads", num_returns="streaming", _generator_backpressure_num_objects=_STREAM_AHEAD)
    def persist(self, command_id: str, excludes: Sequence[str] = ()) -> Iterator[Any]:
        yield from self._life.stream(READS, lambda box: box.persist(command_id, excludes))

    @ray.method(concurrency_group="files")
    def open_file(self, path: str, mode: int | None) -> str:
        return self._life.serve(FILES, lambda box: box.open_file(path, mode))

    @ray.method(concurrency_group="files")
    def open_hydrate(self) -> str:
        return self._life.serve(FILES, lambda box: box.open_hydrate())

    @ray.method(concurrency_group="files")
    def send(self, transfer_id: str, data: bytes) -> None:
        self._life.serve(FILES, lambda box: box.send(transfer_id, data), was_admitted=False)

    @ray.method(concurrency_group="files")
    def commit(self, transfer_id: str) -> None:
        self._life.serve(FILES, lambda box: box.commit(transfer_id), was_admitted=False)

    @ray.method(concurrency_group="control")
    def abort(self, transfer_id: str) -> None:
        self._life.answer(lambda box: box.abort(transfer_id))

    @ray.method(concurrency_group="files")
    def delete_file(self, path: str) -> None:
        self._life.serve(FILES, lambda box: box.delete_file(path))

    @ray.method(concurrency_group="files")
    def list_files(self, path: str) -> Any:
        return self._life.serve(FILES, lambda box: box.list_files(path))

    @ray.method(concurrency_group="files")
    def changes_since(self, wanted: LiveChangesOptions) -> Any:
        return self._life.serve(FILES, lambda box: box.changes_since(wanted))

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
        has_news = self._life.admit(lane, found)
        return ray.get_runtime_context().get_node_id(), self._restarts, has_news

    @functools.cached_property
    def _restarts(self) -> int:
        return times_restarted(str(ray.get_runtime_context().get_actor_id()))

    @ray.method(concurrency_group="control")
    def info(self) -> Any:
        return self._life.answer(lambda box: box.info())

    @ray.method(concurrency_group="control")
    def notice(self) -> Any:
        """Returns the sandbox's recovery if no caller has confirmed yet that it knows of it; otherwise None."""
        return self._life.answer(lambda box: box.notice())

    @ray.method(concurrency_group="labels")
    def acknowledge(self, at: datetime) -> None:
        """Notes that a caller knows of the recovery that began at this time."""
        self._life.answer(lambda box: box.ownership.acknowledge(at))

    @ray.method(concurrency_group="labels")
    def relabel(self) -> None:
        """Reads the labels anew. A client sends it after it has changed them in the bucket."""
        self._life.answer(lambda box: box.ownership.relabel())

    @ray.method(concurrency_group="control")
    def operation(self) -> Any:
        return self._life.answer(lambda box: box.operation())

    @ray.method(concurrency_group="control")
    def cancel(self) -> bool:
        return self._life.answer(lambda box: box.cancel())

    @ray.method(concurrency_group="control")
    def stop(self, name: str) -> bool:
        return self._life.answer(lambda box: box.stop(name))
