"""The actors of sandboxes and of the service: thin Ray shells round plain classes.

Lanes are Ray concurrency groups of a synchronous actor. The default group, left without `max_concurrency`,
is the mailbox: one call at a time, in order of arrival for each caller. `exec` carries commands, `files` files,
`control` questions and cancellations, which answer in about a millisecond while the others are busy.

Nothing is retried by Ray: a call with an effect runs once, or its caller learns that the outcome is unknown.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import ray
import structlog
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.admission import Admission
from actors.errors import LEAVING, HoldfastError, InternalError, SandboxUnavailableError, ServiceUnavailableError
from actors.logs import configure_logging
from actors.metrics import QUEUE_LENGTH, SLEEPS, Counts
from actors.node_host import node_host_class
from actors.nodes import SLOTS, Nodes
from actors.observation import Watch, cluster_metrics, observed, report_to_service
from actors.rpc import EXEC, FILES, MAILBOX, NAMESPACE, SERVICE_NAME, awake_sandboxes, sandbox_actor_name
from actors.warm_workers import WarmWorkers

if TYPE_CHECKING:
    from actors.models import BackupOptions, ExecRequest, RestoreOptions
    from actors.sandbox import LocalSandbox
    from actors.settings import SandboxConfig
    from storage.metadata import Checkpoint

_LANES = {"exec": 32, "files": 16, "control": 8}
_SERVICE_LANES = {"spawn": 64, "collect": 2, "metrics": 2, "report": 2, "lost": 8}
"""What may take long, and so keeps nobody else waiting: a full cluster, a large bucket. And what must not wait."""
_SERVICE_THREADS = 32
_SPAWN_S = 30.0
_CLOSE_S = 60.0
_LEAVING_POLL_S = 0.02
_LAST_WORDS_S = 0.5
"""How long an actor that was replaced lives on, so that the answers of its calls arrive."""
_HOUSEKEEPING_S = 5.0
_FIRST_CALL_S = 10.0
"""How long a new actor waits at least for the call it was made for."""
_STREAM_AHEAD = 16
"""Items that a stream may be ahead of its reader: 16 MiB of a file."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class _Activity:
    """Counts the calls that are being served, so that the actor leaves between calls and never under one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serving = 0
        self._used_at = time.monotonic() + _FIRST_CALL_S
        self._leaving = False

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """One call is served within the block. Raises SandboxUnavailableError, for the caller's side to try again."""
        with self._lock:
            if self._leaving:
                raise SandboxUnavailableError(
                    "The sandbox's actor is leaving.", context={"outcome": "not_executed", LEAVING: True}
                )
            self._serving += 1
        try:
            yield
        finally:
            with self._lock:
                self._serving -= 1
                self._used_at = time.monotonic()

    def touch(self) -> None:
        """A call is on its way. Raises SandboxUnavailableError, as a call would."""
        with self.call():
            pass

    def idle_since(self, idle_s: float) -> float | None:
        """Since when nothing has been served, if that is `idle_s` ago; otherwise None."""
        with self._lock:
            idle = not self._serving and time.monotonic() - self._used_at >= idle_s
            return self._used_at if idle else None

    def leave(self, idle_since: float) -> bool:
        """From now on serves nothing, if nothing was served since `idle_since`; otherwise gives False."""
        with self._lock:
            self._leaving = not self._serving and self._used_at <= idle_since
            return self._leaving

    def stay(self) -> None:
        """Serves again."""
        with self._lock:
            self._leaving = False


@observed
class SandboxHost:
    """One sandbox's actor. `__init__` does nothing that can fail: an error there would lose its class."""

    def __init__(self, tenant: str, sandbox_id: str, config: SandboxConfig) -> None:
        self._address = (tenant, sandbox_id, config)
        self.watch = Watch(tenant=tenant, sandbox=sandbox_id)
        self._activity = _Activity()
        self._admission = Admission()
        self._making = threading.Lock()
        self._made: LocalSandbox | None = None
        self._ending = False

    def _sandbox(self) -> LocalSandbox:
        """The sandbox, made on the first call."""
        if self._made is None:
            with self._making:
                if self._made is None:
                    self._made = self._make()
        return self._made

    def _make(self) -> LocalSandbox:
        from actors.bucket import open_catalog
        from actors.node.errors import NodeError
        from actors.sandbox import LocalSandbox, choose_driver
        from actors.settings import on_this_node

        configure_logging()
        tenant, sandbox_id, config = self._address
        config = on_this_node(config)
        self.watch.report(report_to_service)
        try:
            return LocalSandbox(
                tenant,
                sandbox_id,
                config,
                driver=choose_driver(config.node),
                catalog=open_catalog(config),
                cluster_node=_this_node(),
                is_lost=_is_lost,
                meter=self.watch.tally,
            )
        except (NodeError, OSError) as e:
            log.error("sandbox_not_made", error=type(e).__name__)
            raise SandboxUnavailableError(
                "This node cannot run sandboxes.",
                hint="Run `holdfast doctor` on it.",
                context={"outcome": "not_executed"},
            ) from None

    def _answer(self, act: Callable[[LocalSandbox], T]) -> T:
        """A question: keeps nobody awake."""
        try:
            return _guarded(lambda: act(self._sandbox()))
        finally:
            self._end_if_superseded()

    def _serve(self, lane: str | None, act: Callable[[LocalSandbox], T]) -> T:
        """Serves a call that was let in to `lane`; a transfer that goes on needed no leave."""
        if lane is not None:
            self._admission.begin(lane)
        with self._activity.call():
            return self._answer(act)

    def _stream(self, lane: str, act: Callable[[LocalSandbox], Iterator[T]]) -> Iterator[T]:
        self._admission.begin(lane)
        with self._activity.call():
            try:
                yield from _guarded_items(lambda: act(self._sandbox()))
            finally:
                self._end_if_superseded()

    def _end_if_superseded(self) -> None:
        """Ends the process, once its answer is out, when another actor has taken the sandbox over."""
        if self._made is not None and self._made.custody.is_superseded and not self._ending:
            self._ending = True
            log.error("superseded_actor_ends")
            threading.Timer(_LAST_WORDS_S, self._end, args=(self._made,)).start()

    def _end(self, box: LocalSandbox) -> None:
        try:
            box.close()
        except Exception as e:  # the node's sweep does it
            log.warning("superseded_sandbox_not_closed", error=type(e).__name__)
        os._exit(1)

    # --- mailbox

    def create_backup(self, options: BackupOptions, idempotency_key: str | None = None) -> Any:
        return self._serve(MAILBOX, lambda box: box.create_backup(options, idempotency_key=idempotency_key))

    def restore_backup(self, options: RestoreOptions) -> Any:
        return self._serve(MAILBOX, lambda box: box.restore_backup(options))

    def destroy(self) -> None:
        self._serve(MAILBOX, lambda box: box.destroy())

    def close(self) -> None:
        """Unmounts everything and ends what runs, before the service stops."""
        if self._made is not None:
            self._answer(lambda box: box.close())

    def leave(self, idle_s: float) -> None:
        """Gives the process back if no call came for `idle_s`; the next call finds everything in place.

        Sent by somebody else: an actor that sends it to itself would wait for its own end.
        """
        idle_since = self._activity.idle_since(idle_s)
        if idle_since is None or (self._made is not None and self._made.has_uploads):
            return
        in_bed = self._put_to_bed()
        if not self._activity.leave(idle_since):
            return
        try:
            if self._made is not None:
                if self._made.has_uploads:
                    self._activity.stay()
                    return
                self._answer(lambda box: box.sleep(in_bed))
        except HoldfastError as e:
            log.warning("sandbox_stays_awake", error=e.code)
            self._activity.stay()
            return
        if idle_s > 0:
            self.watch.tally.add(SLEEPS)
        self.watch.flush(report_to_service)
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    def _put_to_bed(self) -> list[Checkpoint] | None:
        """Backs everything up, where sandboxes sleep in the bucket. None: its files stay on this node."""
        _, _, config = self._address
        if self._made is None or not self._made.is_awake or config.on_sleep == "keep" or config.bucket is None:
            return None
        try:
            return self._answer(lambda box: box.put_to_bed())
        except HoldfastError as e:
            log.warning("files_stay_on_the_node", error=e.code)
            return None

    # --- exec and files

    @ray.method(concurrency_group="exec", num_returns="streaming", _generator_backpressure_num_objects=_STREAM_AHEAD)
    def exec(self, command_id: str, request: ExecRequest) -> Iterator[Any]:
        yield from self._stream(EXEC, lambda box: box.exec(command_id, request))

    @ray.method(concurrency_group="files", num_returns="streaming", _generator_backpressure_num_objects=_STREAM_AHEAD)
    def read_file(self, transfer_id: str, path: str) -> Iterator[Any]:
        yield from self._stream(FILES, lambda box: box.read_file(transfer_id, path))

    @ray.method(concurrency_group="files", num_returns="streaming", _generator_backpressure_num_objects=_STREAM_AHEAD)
    def persist(self, command_id: str) -> Iterator[Any]:
        yield from self._stream(FILES, lambda box: box.persist(command_id))

    @ray.method(concurrency_group="files")
    def open_file(self, path: str, mode: int | None) -> str:
        return self._serve(FILES, lambda box: box.open_file(path, mode))

    @ray.method(concurrency_group="files")
    def open_hydrate(self) -> str:
        return self._serve(FILES, lambda box: box.open_hydrate())

    @ray.method(concurrency_group="files")
    def send(self, transfer_id: str, data: bytes) -> None:
        self._serve(None, lambda box: box.send(transfer_id, data))

    @ray.method(concurrency_group="files")
    def commit(self, transfer_id: str) -> None:
        self._serve(None, lambda box: box.commit(transfer_id))

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
    def let_in(self, lane: str) -> None:
        """Asked before each call that may have to wait. Raises TooManyCallsError, SandboxUnavailableError."""
        self._activity.touch()
        self.watch.tally.add(QUEUE_LENGTH, lane, amount=self._admission.let_in(lane))

    @ray.method(concurrency_group="control")
    def node(self) -> str:
        """What the cluster calls the node it runs on."""
        return _this_node()

    @ray.method(concurrency_group="control")
    def info(self) -> Any:
        return self._answer(lambda box: box.info())

    @ray.method(concurrency_group="control")
    def relabel(self, labels: Mapping[str, str]) -> None:
        """Told by whoever has changed the labels in the bucket."""
        self._answer(lambda box: box.custody.relabel(labels))

    @ray.method(concurrency_group="control")
    def operation(self) -> Any:
        return self._answer(lambda box: box.operation())

    @ray.method(concurrency_group="control")
    def cancel(self) -> bool:
        return self._answer(lambda box: box.cancel())

    @ray.method(concurrency_group="control")
    def stop(self, name: str) -> bool:
        return self._answer(lambda box: box.stop(name))


@functools.cache
def _sandbox_class() -> Any:
    """Made once: Ray would send each one it is given through the cluster's head, to every worker anew."""
    return ray.remote(concurrency_groups=_LANES)(SandboxHost)  # type: ignore[call-overload]


@observed
class ServiceHost:
    """The service's one actor. It makes the sandboxes, so that a job's folder and environment never become theirs."""

    def __init__(self, config: SandboxConfig) -> None:
        from actors.bucket import open_catalog
        from actors.service import Service

        configure_logging()
        self.watch = Watch()
        self._config = config
        self._service = Service(config, open_catalog(config), is_running=_is_running)
        self._nodes = Nodes(node_host_class(), config)
        self._spawning = [threading.Lock() for _ in range(_SERVICE_LANES["spawn"])]
        """One sandbox is made by one call at a time, so that only what this call has made is ever given up."""
        self._warm = WarmWorkers(config.warm_workers)
        threading.Thread(target=self._keep_house, daemon=True, name="housekeeping").start()
        if config.sleep_after_s > 0:
            threading.Thread(target=self._let_idle_ones_leave, daemon=True, name="evictor").start()

    @ray.method(concurrency_group="spawn")
    def spawn(self, tenant: str, sandbox_id: str, near: str | None) -> None:
        """Makes a sandbox's actor, unless there is one; returns once it answers.

        `near` names a backup that it is about to restore.

        Raises:
            SandboxUnavailableError: no node has a slot free. Ray would wait for one for ever.
        """
        name = sandbox_actor_name(tenant, sandbox_id)
        with self._spawning[hash(name) % len(self._spawning)]:
            self._spawn(name, tenant, sandbox_id, near)

    def _spawn(self, name: str, tenant: str, sandbox_id: str, near: str | None) -> None:
        deadline = time.monotonic() + _SPAWN_S
        while True:
            try:
                actor, is_ours = ray.get_actor(name, namespace=NAMESPACE), False
            except ValueError:  # there is none
                actor, is_ours = self._new_actor(name, tenant, sandbox_id, near), True
                deadline = time.monotonic() + _SPAWN_S
            try:
                node: Any = ray.get(actor.node.remote(), timeout=max(0.0, deadline - time.monotonic()))
                if is_ours:
                    self._warm.replace(node)
                return
            except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError):
                # It was just leaving, and its name is free in an instant; or it died, and is being restarted.
                time.sleep(_LEAVING_POLL_S)
            except ray.exceptions.GetTimeoutError:
                if is_ours:  # it has never answered anybody, so nothing is lost with it
                    ray.kill(actor)
                raise SandboxUnavailableError(
                    "The sandbox's actor did not start in time.", hint="Try again.", context={"outcome": "not_executed"}
                ) from None

    def _new_actor(self, name: str, tenant: str, sandbox_id: str, near: str | None) -> Any:
        """A sandbox's new actor. Nobody else makes one of this name meanwhile."""
        node = _guarded(lambda: self._nodes.choose(self._service.find_home(tenant, sandbox_id), near))
        config = self._config.model_copy(update={"conditional_writes": self._service.has_conditional_writes})
        return (
            _sandbox_class()
            .options(
                name=name,
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                resources={SLOTS: 1},
                max_restarts=-1,
                max_task_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
            )
            .remote(tenant, sandbox_id, config)
        )

    def close_all(self) -> int:
        """Closes every sandbox that is awake, before the service stops; returns how many could not be."""
        actors = list(_sandboxes().values())
        for actor in actors:
            actor.cancel.remote()
        closing: list[Any] = [actor.close.remote() for actor in actors]
        if not closing:
            return 0
        ended, waiting = ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        return len(waiting) + sum(not _succeeded(ref) for ref in ended)

    def _keep_house(self) -> None:
        while True:
            self._service.try_conditional_writes()
            try:
                self._nodes.attend()
                self._warm.fill()
            except Exception as e:  # the cluster's head is away for a moment
                log.warning("nodes_not_attended", error=type(e).__name__)
            time.sleep(_HOUSEKEEPING_S)

    def _let_idle_ones_leave(self) -> None:
        idle_s = self._config.sleep_after_s
        asked: dict[str, Any] = {}
        while True:
            time.sleep(max(idle_s / 4, _LEAVING_POLL_S))
            try:
                asked = {name: ref for name, ref in asked.items() if not ray.wait([ref], timeout=0)[0]}
                for name, actor in _sandboxes().items():
                    if name not in asked:  # never two in one mailbox
                        asked[name] = actor.leave.remote(idle_s)
            except Exception as e:  # the cluster's head is away for a moment
                log.warning("idle_sandboxes_not_asked", error=type(e).__name__)

    def ping(self) -> bool:
        return True

    @ray.method(concurrency_group="lost")
    def is_lost(self, identity: str, cluster_node: str | None) -> bool:
        """Whether a node, of this identity and this name in the cluster, is gone with its files."""
        return self._nodes.is_lost(identity, cluster_node)

    def ready(self) -> None:
        _guarded(self._service.ready)

    def create_sandbox(self, tenant: str, labels: Mapping[str, str]) -> str:
        return _guarded(lambda: self._service.create_sandbox(tenant, labels))

    def sandboxes(self, tenant: str, limit: int, cursor: str | None) -> Any:
        return _guarded(lambda: self._service.sandboxes(tenant, limit, cursor))

    def describe(self, tenant: str, sandbox_id: str) -> Any:
        return _guarded(lambda: self._service.describe(tenant, sandbox_id))

    def backups(self, tenant: str, sandbox_id: str, limit: int, cursor: str | None) -> Any:
        return _guarded(lambda: self._service.backups(tenant, sandbox_id, limit, cursor))

    def backup(self, tenant: str, backup_id: str) -> Any:
        return _guarded(lambda: self._service.backup(tenant, backup_id))

    def delete_backup(self, tenant: str, backup_id: str) -> None:
        _guarded(lambda: self._service.delete_backup(tenant, backup_id))

    @ray.method(concurrency_group="collect")
    def collect(self, dry_run: bool) -> Any:
        return _guarded(lambda: self._service.collect(dry_run))

    def lifecycle(self, expire_days: int | None) -> Any:
        return _guarded(lambda: self._service.lifecycle(expire_days))

    def doctor(self) -> Any:
        return _guarded(self._service.doctor)

    def events(self, tenant: str, sandbox_id: str, limit: int) -> Any:
        return _guarded(lambda: self._service.events(tenant, sandbox_id, limit))

    def set_labels(self, tenant: str, sandbox_id: str, labels: Mapping[str, str]) -> Any:
        return _guarded(lambda: self._service.set_labels(tenant, sandbox_id, labels))

    def change_labels(self, tenant: str, sandbox_id: str, labels: Mapping[str, str], removed: Sequence[str]) -> Any:
        return _guarded(lambda: self._service.change_labels(tenant, sandbox_id, labels, removed))

    @ray.method(concurrency_group="report")
    def report(self, counts: Counts) -> None:
        """Takes over what a sandbox's actor has counted."""
        self.watch.tally.merge(counts)

    @ray.method(concurrency_group="metrics")
    def metrics(self) -> Any:
        return _guarded(lambda: cluster_metrics(self.watch.tally.counts()))


def start_service(config: SandboxConfig) -> None:
    """Starts the service's actor in the cluster this process has joined, unless it runs; returns once it answers."""
    actor: Any = (
        ray.remote(concurrency_groups=_SERVICE_LANES)(ServiceHost)  # type: ignore[call-overload]
        .options(
            name=SERVICE_NAME,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=_SERVICE_THREADS,
        )
        .remote(config)
    )
    ray.get(actor.ready.remote())


def stop_service() -> int:
    """Closes every sandbox of the cluster this process has joined; returns how many could not be closed."""
    try:
        actor: Any = ray.get_actor(SERVICE_NAME, namespace=NAMESPACE)
    except ValueError:
        return 0
    failed: Any = ray.get(actor.close_all.remote(), timeout=120)
    return int(failed)


def _sandboxes() -> dict[str, Any]:
    """The actors of all sandboxes that are awake, by name."""
    found = {}
    for name in awake_sandboxes():
        with contextlib.suppress(ValueError):  # it has left by itself
            found[name] = ray.get_actor(name, namespace=NAMESPACE)
    return found


def _this_node() -> str:
    return ray.get_runtime_context().get_node_id()


def _is_lost(identity: str, cluster_node: str | None) -> bool:
    """Whether the service takes a node for lost; if it cannot be asked, nothing is lost."""
    try:
        service: Any = ray.get_actor(SERVICE_NAME, namespace=NAMESPACE)
        return bool(ray.get(service.is_lost.remote(identity, cluster_node), timeout=_SPAWN_S))
    except (ValueError, ray.exceptions.RayError) as e:
        log.warning("node_not_asked_for", error=type(e).__name__)
        return False


def _succeeded(ref: Any) -> bool:
    try:
        ray.get(ref)
    except ray.exceptions.RayError:
        return False
    return True


def _is_running(tenant: str, sandbox_id: str) -> bool:
    try:
        ray.get_actor(sandbox_actor_name(tenant, sandbox_id), namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _guarded(act: Callable[[], T]) -> T:
    """Lets only our own errors out: any other would carry paths and classes that the caller may not have."""
    try:
        return act()
    except HoldfastError:
        raise
    except ray.exceptions.RayError as e:
        log.warning("cluster_failed", error=type(e).__name__)
        raise ServiceUnavailableError("The cluster did not answer.", context={"outcome": "not_executed"}) from None
    except Exception as e:
        raise _unexpected(e) from None


def _guarded_items(begin: Callable[[], Iterator[T]]) -> Iterator[T]:
    try:
        yield from begin()
    except HoldfastError:
        raise
    except Exception as e:
        raise _unexpected(e) from None


def _unexpected(error: Exception) -> InternalError:
    # Where it happened, but not its message: that may hold a path of the node, or worse.
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    log.error("unexpected_error", error=type(error).__name__, where=where)
    return InternalError("Something failed that has no name of its own.", context={"cause": type(error).__name__})
