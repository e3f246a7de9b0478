"""Observed calls of an actor, without Ray: their counts, and the fields of their log lines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from actors.errors import ActorLeavingError, BackupNotFoundError, ServiceUnavailableError
from actors.host.observation import Watch, observed
from actors.logs import _named
from actors.metrics import CALL_SECONDS, CALLS, SUM, Counts
from actors.request_ids import ARGUMENT, carrying, serving
from actors.rpc.actor_ref import ActorRef
from actors.rpc.calls import Call


def noted() -> dict[str, Any]:
    """The fields that a log line would carry now."""
    return dict(_named.get())


@observed
class Host:
    def __init__(self) -> None:
        self.watch = Watch(sandbox="box")

    @ray.method(concurrency_group="exec")
    def look(self, value: int = 0) -> dict[str, Any]:
        return {"value": value, **noted()}

    def fail(self, error: BaseException) -> None:
        raise error

    @ray.method(num_returns="streaming")
    def items(self) -> Iterator[dict[str, Any]]:
        yield noted()
        yield noted()

    def ping(self) -> bool:
        return True

    def _inner(self) -> None:
        """A private method, which is not observed."""


def outcomes(host: Host) -> dict[tuple[str, ...], float]:
    return {labels: amount for (name, labels), amount in host.watch.tally.counts().items() if name == CALLS.name}


def test_log_lines_carry_the_sandbox_and_request_only_while_the_call_runs() -> None:
    host: Any = Host()
    assert host.look(3, **{ARGUMENT: "abc"}) == {"value": 3, "sandbox": "box", "request_id": "abc"}
    assert host.look() == {"value": 0, "sandbox": "box"}
    assert list(host.items(**{ARGUMENT: "abc"})) == [{"sandbox": "box", "request_id": "abc"}] * 2
    assert noted() == {}


def test_calls_are_counted_by_kind_and_outcome_and_timed() -> None:
    host: Any = Host()
    host.look()
    list(host.items())
    next(abandoned := host.items())
    abandoned.close()
    for error in (BackupNotFoundError("x"), KeyError()):
        with pytest.raises(type(error)):
            host.fail(error)
    assert outcomes(host) == {
        ("look", "ok"): 1,
        ("items", "ok"): 1,
        ("items", "closed"): 1,
        ("fail", "BACKUP_NOT_FOUND"): 1,
        ("fail", "INTERNAL"): 1,
    }
    assert host.watch.tally.counts()[CALL_SECONDS.name, ("look", SUM)] > 0


def test_pings_and_calls_that_will_be_sent_again_are_not_counted() -> None:
    host = Host()
    host.ping()
    with pytest.raises(ActorLeavingError):
        host.fail(ActorLeavingError())
    assert outcomes(host) == {}


def test_an_observed_method_keeps_its_signature_for_ray_but_for_the_id() -> None:
    host: Any = Host
    parameters = inspect.signature(inspect.unwrap(host.look)).parameters  # the view that Ray has
    assert list(parameters) == ["self", "value", ARGUMENT]
    assert host.look.__ray_concurrency_group__ == "exec"
    assert host.items.__ray_num_returns__ == "streaming"
    assert inspect.isgeneratorfunction(Host.items)
    assert ARGUMENT not in inspect.signature(Host._inner).parameters


def test_counts_are_kept_when_the_hand_over_fails() -> None:
    host, got = Host(), list[Counts]()

    def refuse(counts: Counts) -> None:
        raise ServiceUnavailableError("away")

    host.look()
    host.watch.flush(refuse)
    host.look()
    host.watch.flush(got.append)
    host.watch.flush(got.append)
    assert [counts[CALLS.name, ("look", "ok")] for counts in got] == [2]


class Handle:
    """A fake actor handle: records the calls, and answers at once."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*args: Any, **kwargs: Any) -> Callable[[], str]:
                self.sent.append((name, args, kwargs))
                return lambda: "answer"

        return Method


def test_every_call_within_a_request_carries_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle()
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: handle)
    actor = ActorRef("observed")
    with serving("abc"):
        assert Call(lambda: actor.call(lambda actor: actor.look.remote(1))).result() == "answer"
        assert Call(lambda: actor.call_if_alive(lambda actor: actor.look.remote(2), None)).result() == "answer"
    assert Call(lambda: actor.call(lambda actor: actor.look.remote(3))).result() == "answer"
    actor.forget()
    assert handle.sent == [
        ("look", (1,), {ARGUMENT: "abc"}),
        ("look", (2,), {ARGUMENT: "abc"}),
        ("look", (3,), {}),
    ]
    assert carrying(handle) is handle
