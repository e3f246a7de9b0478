"""Translation of Ray's errors and retries of calls, without Ray."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)

from actors.errors import (
    DRAINING,
    ActorLeavingError,
    BackupNotFoundError,
    HoldfastError,
    InternalError,
    OperationCancelledError,
    SandboxMovingError,
    SandboxUnavailableError,
    ServiceUnavailableError,
    TooManyCallsError,
)
from actors.models import Recovery
from actors.notices import collecting
from actors.rpc import actor_ref, cluster
from actors.rpc.actor_ref import ActorRef
from actors.rpc.calls import Call, Stream, submit


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a unit test may not start Ray")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "get", refuse)
    actor_ref._handles.clear()
    yield
    actor_ref._handles.clear()


def wrapped(cause: Exception) -> RayTaskError:
    return RayTaskError("create_backup", "Traceback: /secret/path pid=12", cause)  # type: ignore[no-untyped-call]


TABLE: list[tuple[RayError, type[HoldfastError], dict[str, Any]]] = [
    (wrapped(BackupNotFoundError("x", context={"backup": "b"})), BackupNotFoundError, {"backup": "b"}),
    (wrapped(ValueError("/secret/path")), InternalError, {"cause": "ValueError"}),
    (wrapped(wrapped(BackupNotFoundError("x"))), BackupNotFoundError, {}),
    (wrapped(ActorUnavailableError("x", None)), SandboxUnavailableError, {"outcome": "unknown"}),
    (ActorUnavailableError("x", None), SandboxUnavailableError, {"outcome": "unknown"}),
    (ActorDiedError(), SandboxUnavailableError, {"outcome": "not_executed"}),
    (TaskCancelledError(), OperationCancelledError, {}),
    (GetTimeoutError("x"), ServiceUnavailableError, {}),
    (ObjectLostError("00" * 28, None, ""), InternalError, {"cause": "ObjectLostError"}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "kind", "context"), TABLE, ids=lambda value: type(value).__name__)
def test_every_error_of_ray_is_translated(error: RayError, kind: type[HoldfastError], context: dict[str, Any]) -> None:
    def steps() -> Generator[Any, Any, None]:
        yield fail

    def fail() -> None:
        raise error

    with pytest.raises(HoldfastError) as raised:
        Call(steps).result()
    assert type(raised.value) is kind
    assert raised.value.context == context
    assert "/secret" not in str(raised.value)
    assert raised.value.__cause__ is None


class Method:
    """A fake actor method: gives the next of its answers at each call."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def remote(self, *args: object) -> Callable[[], object]:
        """The awaitable that `actor.method.remote()` returns."""
        return lambda: given(self.answers.pop(0))


class Actor:
    """A fake actor that gives each of its answers once; `pings` are its answers to `ping`.

    It admits every call, and reports then that it was restarted `restarts` times.
    """

    def __init__(self, *answers: object, pings: Sequence[object] = (), restarts: int = 0) -> None:
        self.answers = list(answers)
        self.ping = Method(*pings)
        self.admit = Method(*[("node", restarts, False)] * 2)
        self.notice = Method(*[None] * 2)
        self._actor_id = ray.ActorID.nil()

    def answer(self) -> object:
        return given(self.answers.pop(0))


def given(answer: object) -> object:
    if isinstance(answer, Exception):
        raise answer
    return answer


UNAVAILABLE = ActorUnavailableError("x", None)


def test_a_call_to_an_actor_that_had_left_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, there = Actor(ActorDiedError()), Actor("done")
    found = iter([gone, there])
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: next(found))
    reference = ActorRef("sandbox:default:x")
    assert Call(lambda: reference.call(lambda actor: actor.answer)).result() == "done"


def test_a_call_that_may_have_been_executed_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Actor(UNAVAILABLE, "never", pings=[UNAVAILABLE, True])
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    with pytest.raises(SandboxUnavailableError) as raised:
        Call(lambda: ActorRef("a").call(lambda actor: actor.answer)).result()
    assert raised.value.context == {"outcome": "unknown"}
    assert (actor.answers, actor.ping.answers) == (["never"], [])


def test_a_call_to_an_actor_found_to_have_left_after_some_pings_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone, there = Actor(UNAVAILABLE, pings=[UNAVAILABLE, ActorDiedError()]), Actor("done")
    found = iter([gone, there])
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: next(found))
    monkeypatch.setattr(cluster, "actors", lambda actor_id: {"NumRestarts": 0})
    assert Call(lambda: ActorRef("a").call(lambda actor: actor.answer)).result() == "done"


@pytest.mark.parametrize(
    ("then", "now", "again"), [(0, 0, True), (0, 1, False), (2, 2, True), (2, 3, False), (0, -1, False)]
)
def test_a_call_to_an_actor_that_crashed_before_it_left_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, then: int, now: int, *, again: bool
) -> None:
    first, second = Actor(UNAVAILABLE, pings=[UNAVAILABLE, ActorDiedError()], restarts=then), Actor("done")
    found = iter([first, second])
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: next(found))
    monkeypatch.setattr(cluster, "actors", lambda actor_id: {"NumRestarts": now} if now >= 0 else {})
    call = Call(lambda: ActorRef("a").call(lambda actor: actor.answer, lane="exec"))
    if again:
        assert call.result() == "done"
    else:
        with pytest.raises(SandboxUnavailableError) as raised:
            call.result()
        assert raised.value.context == {"outcome": "unknown"}


def test_the_outcome_is_unknown_if_the_actor_never_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Actor(UNAVAILABLE, pings=[UNAVAILABLE] * 100)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    with pytest.raises(SandboxUnavailableError) as raised:
        Call(lambda: ActorRef("a", retry_s=0.05).call(lambda actor: actor.answer)).result()
    assert raised.value.context == {"outcome": "unknown"}


def test_an_actor_that_left_before_its_first_call_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([(Actor(ActorDiedError()), 0), (Actor("done"), 0)])

    def find(name: str, namespace: str) -> Actor:
        raise ValueError

    def create(lane: str | None, cached_backup_id: str | None) -> Generator[Any, Any, Any]:
        return (yield lambda: next(made))

    monkeypatch.setattr(ray, "get_actor", find)
    assert Call(lambda: ActorRef("a", create=create).call(lambda actor: actor.answer)).result() == "done"
    assert next(made, None) is None


def test_making_an_actor_for_a_call_admits_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, namespace: str) -> Actor:
        raise ValueError

    def create(lane: str | None, cached_backup_id: str | None) -> Generator[Any, Any, Any]:
        assert (lane, cached_backup_id) == ("mailbox", "a backup")
        return (yield lambda: (Actor("done"), 0))

    monkeypatch.setattr(ray, "get_actor", find)
    call = Call(
        lambda: ActorRef("a", create=create).call(
            lambda actor: actor.answer, lane="mailbox", cached_backup_id="a backup"
        )
    )
    assert call.result() == "done"


def test_calling_an_actor_that_always_leaves_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: Actor(ActorDiedError()))
    with pytest.raises(SandboxUnavailableError) as raised:
        Call(lambda: ActorRef("a", retry_s=0.05).call(lambda actor: actor.answer)).result()
    assert raised.value.context == {"outcome": "not_executed"}


def test_a_call_that_a_leaving_actor_refuses_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    leaving = wrapped(ActorLeavingError())
    actor = Actor(leaving, leaving, "done")
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    assert Call(lambda: ActorRef("a").call(lambda actor: actor.answer)).result() == "done"


def test_a_call_that_failed_for_another_reason_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Actor(wrapped(SandboxUnavailableError("no room", context={"outcome": "not_executed"})), "never")
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    with pytest.raises(SandboxUnavailableError, match="no room"):
        Call(lambda: ActorRef("a").call(lambda actor: actor.answer)).result()
    assert actor.answers == ["never"]


def test_without_a_service_the_error_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str, namespace: str) -> None:
        raise ValueError

    monkeypatch.setattr(ray, "get_actor", none)
    with pytest.raises(ServiceUnavailableError) as raised:
        Call(lambda: ActorRef("service").call(lambda actor: actor.answer)).result()
    assert "holdfast serve" in (raised.value.hint or "")
    assert Call(lambda: ActorRef("a").call_if_alive(lambda actor: actor.answer, "default")).result() == "default"


class Restarting:
    """A fake actor that admits no call until it is back."""

    def __init__(self, *answers: object) -> None:
        self.admit = self
        self._answers = list(answers)
        self.served = 0

    def remote(self, lane: str) -> Callable[[], object]:
        """The awaitable that `actor.admit.remote(lane)` returns."""
        assert lane == "mailbox"
        return lambda: given(self._answers.pop(0))

    def serve(self) -> str:
        self.served += 1
        return "done"


def test_a_call_to_a_restarting_actor_waits_for_it_and_is_sent_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = Restarting(UNAVAILABLE, UNAVAILABLE, ("node", 1, False))
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    assert Call(lambda: ActorRef("a").call(lambda actor: actor.serve, lane="mailbox")).result() == "done"
    assert actor.served == 1


def test_a_call_is_not_executed_if_the_actor_is_not_back_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Restarting(*[UNAVAILABLE] * 100)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    with pytest.raises(SandboxUnavailableError) as raised:
        Call(lambda: ActorRef("a", retry_s=0.05).call(lambda actor: actor.serve, lane="mailbox")).result()
    assert raised.value.context == {"outcome": "not_executed"}
    assert actor.served == 0


def test_a_call_without_admission_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Restarting(wrapped(TooManyCallsError("x")))
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    with pytest.raises(TooManyCallsError):
        Call(lambda: ActorRef("a").call(lambda actor: actor.serve, lane="mailbox")).result()
    assert actor.served == 0


def test_submitting_a_call_does_not_wait_for_its_actor_to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted, sent = threading.Event(), threading.Event()

    class Told:
        def stop(self) -> None:
            sent.set()

    def find(name: str, namespace: str) -> Told:
        assert submitted.wait(60)
        return Told()

    monkeypatch.setattr(ray, "get_actor", find)
    submit(Call(lambda: ActorRef("a").call_if_alive(lambda actor: actor.stop, None)))
    submitted.set()
    assert sent.wait(60)


MOVING = wrapped(SandboxMovingError())
BACK = Recovery(at=datetime(2026, 1, 2, tzinfo=UTC), lost=["/tmp"], told=False)


def test_a_call_waits_longer_for_a_sandbox_that_leaves_a_drained_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = Actor(*[MOVING] * 6, "done")  # the pauses before these take 0.6 s in total
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    assert Call(lambda: ActorRef("a", retry_s=0.5).call(lambda actor: actor.answer)).result() == "done"


def test_the_wait_for_a_moving_sandbox_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_ref, "_MOVES_S", 0.05)
    actor = Actor(*[MOVING] * 100)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    with pytest.raises(SandboxUnavailableError) as raised:
        Call(lambda: ActorRef("a", retry_s=0.01).call(lambda actor: actor.answer)).result()
    assert raised.value.context["reason"] == DRAINING


class Recovered(Actor):
    """A fake actor that admits the call and has a recovery notice; it records which notices were acknowledged."""

    def __init__(self, *answers: object, news: object = BACK, has_news: bool = True) -> None:
        super().__init__(*answers)
        self.admit = Method(("node", 0, has_news))
        self.notice = Method(news)
        self.heard: list[datetime] = []
        self.acknowledge = self

    def remote(self, at: datetime) -> object:
        """Records `actor.acknowledge.remote(at)`, whose result nobody awaits."""
        self.heard.append(at)
        return object()


@pytest.mark.parametrize("answer", ["done", wrapped(BackupNotFoundError("x"))])
def test_the_first_call_after_a_loss_gets_the_notice_whether_it_succeeds_or_not(
    monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    actor, reference = Recovered(answer), ActorRef("sandbox:default:box")
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    with collecting() as heard, contextlib.suppress(BackupNotFoundError):
        assert Call(lambda: reference.call(lambda actor: actor.answer, lane="mailbox")).result() == "done"
    (notice,) = heard
    assert (notice.sandbox, notice.recovery, reference.heard) == ("box", BACK, BACK)
    assert actor.heard == []
    notice.acknowledge()
    assert actor.heard == [BACK.at]


@pytest.mark.parametrize(
    "actor", [Recovered("done", has_news=False), Recovered("done", news=None), Recovered("done", news=UNAVAILABLE)]
)
def test_a_call_to_an_actor_without_news_gets_no_notice(monkeypatch: pytest.MonkeyPatch, actor: Recovered) -> None:
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    with collecting() as heard:
        assert Call(lambda: ActorRef("a").call(lambda actor: actor.answer, lane="mailbox")).result() == "done"
    assert heard == []


def test_a_stream_whose_actor_dies_after_its_first_item_has_an_unknown_outcome() -> None:
    def opened() -> Generator[Any, Any, tuple[Any, list[str], bool]]:
        yield from ()
        return iter([lambda: given(ActorDiedError())]), ["first"], False

    stream: Stream[str] = Stream(opened)
    items = iter(stream)
    assert next(items) == "first"
    with pytest.raises(SandboxUnavailableError) as raised:
        next(items)
    assert raised.value.context == {"outcome": "unknown"}
