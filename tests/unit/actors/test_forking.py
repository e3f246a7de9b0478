"""Forks: many sandboxes from one backup, over sandboxes by script."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from actors.errors import (
    BackupNotFoundError,
    HoldfastError,
    InvalidBackupConfigError,
    NoSpaceError,
    SandboxUnavailableError,
)
from actors.models import MAX_FORKS, ForkOptions, ForkOrder, RestoreBackupResult, RestoreMode, RestoreOptions, validated
from actors.rpc.service_calls import ServiceCalls
from actors.service.forking import Forking
from storage.metadata import Checkpoint, Event, RestoredDirectory, SandboxState

BACKUP = "01234567-89ab-4cde-8f01-23456789abcd"
OTHER = "11234567-89ab-4cde-8f01-23456789abcd"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Boxes:
    """The sandboxes' states, and the restores that were asked for."""

    def __init__(self) -> None:
        self.states: dict[str, SandboxState] = {}
        self.awake: dict[str, set[tuple[str, str]]] = {}
        self.restored: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.on_restore: Callable[[], object] = lambda: None
        self.options: RestoreOptions | None = None
        self.missing = False

    def directory_of(self, tenant: str, backup_id: str) -> str:
        if self.missing:
            raise BackupNotFoundError("There is no such backup.")
        return "/workspace"

    def find_state(self, tenant: str, sandbox_id: str) -> SandboxState | None:
        return self.states.get(sandbox_id)

    def restored_in(self, tenant: str, sandbox_id: str) -> Collection[tuple[str, str]]:
        return self.awake.get(sandbox_id, set())

    def restore(self, tenant: str, sandbox_id: str, options: RestoreOptions) -> RestoreBackupResult:
        self.on_restore()
        self.restored.append(sandbox_id)
        self.options = options
        if sandbox_id in self.fails:
            raise self.fails[sandbox_id]
        self.has(sandbox_id, events=[Event(kind="restored", at=NOW, dir=options.dir, backup_id=options.id)])
        return RestoreBackupResult(dir=options.dir, id=options.id)

    def has(self, sandbox_id: str, **fields: Any) -> None:
        self.states[sandbox_id] = SandboxState(id=sandbox_id, tenant="default", created_at=NOW, **fields)


def order(*names: str, **fields: Any) -> ForkOrder:
    return ForkOrder(backup_id=BACKUP, sandboxes=list(names), **fields)


def outcomes(boxes: Boxes, *names: str, **fields: Any) -> list[tuple[bool, bool, str | None]]:
    result = Forking(boxes).fork("default", order(*names, **fields))
    assert [row.id for row in result.forks] == list(names)
    assert result.success == all(row.success for row in result.forks)
    return [(row.success, row.existed, row.error.code if row.error else None) for row in result.forks]


def test_each_sandbox_is_made_by_a_restore() -> None:
    boxes = Boxes()
    assert outcomes(boxes, "a", "b", "c") == [(True, False, None)] * 3
    assert sorted(boxes.restored) == ["a", "b", "c"]
    assert boxes.options == RestoreOptions(id=BACKUP, dir="/workspace")
    assert not boxes.options.asks_for_overlay, "no mode was asked for, so a node may choose"


def test_a_directory_and_a_mode_are_passed_on() -> None:
    boxes = Boxes()
    outcomes(boxes, "a", dir="/home/x", mode=RestoreMode.COPY)
    assert boxes.options == RestoreOptions(id=BACKUP, dir="/home/x", mode=RestoreMode.COPY)


def test_a_repeated_call_restores_nothing_twice() -> None:
    boxes = Boxes()
    outcomes(boxes, "a", "b")
    assert outcomes(boxes, "a", "b", "c") == [(True, True, None), (True, True, None), (True, False, None)]
    assert sorted(boxes.restored) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "fields",
    [
        {"restored": [RestoredDirectory(dir="/workspace", backup_id=BACKUP, mode="overlay", restored_at=NOW)]},
        {"events": [Event(kind="restored", at=NOW, dir="/workspace", backup_id=BACKUP)]},
    ],
)
def test_a_sandbox_that_was_made_from_the_backup_is_left_as_it_is(fields: dict[str, Any]) -> None:
    boxes = Boxes()
    boxes.has("a", epoch=3, unsaved=["/tmp"], **fields)
    assert outcomes(boxes, "a") == [(True, True, None)]
    assert boxes.restored == []


def test_a_restore_that_only_the_actor_knows_of_is_not_repeated() -> None:
    boxes = Boxes()
    boxes.has("a", epoch=1, events=[Event(kind="created", at=NOW)])
    boxes.awake["a"] = {("/workspace", BACKUP)}
    assert outcomes(boxes, "a") == [(True, True, None)]
    assert boxes.restored == []


@pytest.mark.parametrize("fields", [{}, {"epoch": 2, "events": [Event(kind="created", at=NOW)], "unsaved": []}])
def test_a_sandbox_in_which_nothing_has_ever_been_is_completed(fields: dict[str, Any]) -> None:
    boxes = Boxes()
    boxes.has("a", **fields)
    assert outcomes(boxes, "a") == [(True, False, None)]
    assert boxes.restored == ["a"]


@pytest.mark.parametrize(
    "fields",
    [
        {"unsaved": ["/workspace"]},
        {"pending": [OTHER]},
        {"checkpoints": [Checkpoint(dir="/workspace", backup_id=OTHER, taken_at=NOW)]},
        {"checkpoints": [Checkpoint(dir="/workspace", backup_id=BACKUP, taken_at=NOW)]},
        {"checkpoints": [Checkpoint(dir="/home/x", backup_id=BACKUP, taken_at=NOW)]},
        {"events": [Event(kind="restored", at=NOW, dir="/workspace", backup_id=OTHER)]},
    ],
)
def test_a_sandbox_in_use_is_refused_and_unchanged(fields: dict[str, Any]) -> None:
    boxes = Boxes()
    boxes.has("a", epoch=1, **fields)
    assert outcomes(boxes, "a", "b") == [(False, False, "SANDBOX_EXISTS"), (True, False, None)]
    assert boxes.restored == ["b"]


def test_each_failure_is_an_outcome_of_its_own_and_the_next_call_completes_the_fork() -> None:
    boxes = Boxes()
    boxes.fails = {"b": NoSpaceError("The disk is full.", hint="Make room."), "c": RuntimeError("secret")}
    result = Forking(boxes).fork("default", order("a", "b", "c"))
    errors = [row.error for row in result.forks]
    assert [error.code if error else None for error in errors] == [None, "NO_SPACE", "INTERNAL"]
    assert errors[1] is not None and (errors[1].hint, errors[1].error) == ("Make room.", "The disk is full.")
    assert "secret" not in result.model_dump_json()
    boxes.fails.clear()
    assert outcomes(boxes, "a", "b", "c") == [(True, True, None), (True, False, None), (True, False, None)]


def test_a_sandbox_that_could_not_be_begun_is_tried_again() -> None:
    boxes, pauses = Boxes(), list[float]()
    busy = SandboxUnavailableError("Busy.", context={"outcome": "not_executed"})
    boxes.fails = {"a": busy}
    boxes.on_restore = lambda: boxes.fails.clear() if len(boxes.restored) == 1 else None
    (row,) = Forking(boxes, sleep=pauses.append).fork("default", order("a")).forks
    assert row.success and (boxes.restored, len(pauses)) == (["a", "a"], 1)

    boxes.on_restore, boxes.fails = lambda: None, {"b": busy}
    (row,) = Forking(boxes, sleep=pauses.append).fork("default", order("b")).forks
    assert row.error is not None and row.error.retryable and boxes.restored.count("b") == 3

    boxes.fails = {"c": SandboxUnavailableError("Gone.", context={"outcome": "unknown"})}
    assert outcomes(boxes, "c") == [(False, False, "SANDBOX_UNAVAILABLE")]
    assert boxes.restored.count("c") == 1, "it may have been made"


def test_a_backup_that_cannot_be_restored_makes_no_sandbox() -> None:
    boxes = Boxes()
    boxes.missing = True
    with pytest.raises(BackupNotFoundError):
        Forking(boxes).fork("default", order("a"))
    assert boxes.restored == []


def test_two_calls_for_one_name_make_it_once() -> None:
    boxes = Boxes()
    forking = Forking(boxes)
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(30)

    boxes.on_restore = wait
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(forking.fork("default", order("a")))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert sorted(row.existed for result in results for row in result.forks) == [False, True]
    assert boxes.restored == ["a"]


def test_no_more_than_so_many_are_made_at_once() -> None:
    boxes = Boxes()
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(3)

    def count() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(30)
        with lock:
            running -= 1

    boxes.on_restore = count
    names = [f"box-{number}" for number in range(9)]
    result = Forking(boxes, at_once=3).fork("default", order(*names))
    assert result.success and most == 3


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"count": 1, "sandboxes": ["a"]},
        {"count": 0},
        {"count": MAX_FORKS + 1},
        {"sandboxes": []},
        {"sandboxes": ["a", "a"]},
        {"sandboxes": ["A"]},
        {"sandboxes": [f"a{number}" for number in range(MAX_FORKS + 1)]},
        {"count": 1, "dir": "/etc"},
        {"count": True},
        {"count": 1, "surprise": 1},
    ],
)
def test_options_that_name_no_set_of_sandboxes_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidBackupConfigError):
        validated(ForkOptions, values, InvalidBackupConfigError)


class Sent(Exception):
    """The order that a call would send."""


class Service:
    """A handle of the service's actor that raises what it is sent."""

    @property
    def fork(self) -> Any:
        return self

    def remote(self, tenant: str, order: ForkOrder) -> None:
        raise Sent(tenant, order)


def sent(count: int, key: str | None, backup_id: str = BACKUP) -> list[str]:
    calls = ServiceCalls()
    names: list[list[str]] = []

    def call(send: Callable[[Any], Any]) -> None:
        try:
            send(Service())
        except Sent as e:
            names.append(e.args[1].sandboxes)

    calls._call = call  # type: ignore[assignment,method-assign]
    calls.fork(backup_id, ForkOptions(count=count), idempotency_key=key)
    return names[0]


def test_the_same_key_gives_the_same_names_and_no_key_gives_fresh_ones() -> None:
    fork = partial(sent, 3)
    assert fork("k") == fork("k") and len(set(fork("k"))) == 3
    assert sent(5, "k")[:3] == fork("k"), "a larger count adds to the set"
    assert not set(fork("k")) & set(fork("l"))
    assert not set(fork("k")) & set(sent(3, "k", OTHER))
    assert sent(3, "k", BACKUP.upper()) == fork("k")
    assert not set(fork(None)) & set(fork(None))


def test_a_bad_key_or_backup_is_refused_before_anything_is_sent() -> None:
    for backup_id, key in ((BACKUP, ""), (BACKUP, "é"), ("not-a-uuid", None)):
        with pytest.raises(HoldfastError) as caught:
            ServiceCalls().fork(backup_id, ForkOptions(count=1), idempotency_key=key)
        assert caught.value.code == "INVALID_BACKUP_CONFIG"
