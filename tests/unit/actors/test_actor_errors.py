"""Every error class: has a code, a docstring and a reason, and survives pickling between processes."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Iterator

import pytest

from actors import errors, faults
from actors.errors import (
    DRAINING,
    ActorBeingMadeError,
    ActorLeavingError,
    BackupCreateError,
    BackupRestoreError,
    HoldfastError,
    OperationCancelledError,
    SandboxMovingError,
    SandboxUnavailableError,
    SupersededError,
    TurnedAwayError,
)
from actors.node import errors as node_errors
from actors.node.errors import NodeError
from storage import errors as storage_errors
from storage.errors import StorageError, TransferCancelledError

PATH = "/var/lib/holdfast/node/boxes/default/secret"


def family(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


OURS = [kind for kind in family(HoldfastError) if kind.__module__ == errors.__name__]
NODES = [kind for kind in family(NodeError) if kind.__module__ == node_errors.__name__]
STORES = [kind for kind in family(StorageError) if kind.__module__ == storage_errors.__name__]


@pytest.mark.parametrize("kind", OURS)
def test_an_error_survives_pickling_with_all_its_fields(kind: type[HoldfastError]) -> None:
    error = kind("a sentence", hint="do this", context={"a": 1})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.message, again.hint, again.context, str(again)) == ("a sentence", "do this", {"a": 1}, "a sentence")


@pytest.mark.parametrize("kind", NODES)
def test_an_error_of_the_node_survives_pickling(kind: type[NodeError]) -> None:
    again = pickle.loads(pickle.dumps(kind("a sentence", hint="do this")))
    assert (type(again), again.message, again.hint) == (kind, "a sentence", "do this")


def test_every_error_has_a_code_of_its_own_except_the_kinds_of_unavailable() -> None:
    kinds_of_unavailable = [kind for kind in family(SandboxUnavailableError) if kind is not SandboxUnavailableError]
    assert {kind.code for kind in kinds_of_unavailable} == {"SANDBOX_UNAVAILABLE"}  # type: ignore[attr-defined]
    with_code = [kind for kind in OURS if kind is not HoldfastError and kind not in kinds_of_unavailable]
    codes = [kind.code for kind in with_code]  # type: ignore[attr-defined]
    assert len(codes) == len(set(codes))
    assert all(code == code.upper() and code.replace("_", "").isalpha() for code in codes)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ActorBeingMadeError, None),
        (ActorLeavingError, None),
        (SandboxMovingError, DRAINING),
        (SupersededError, "SUPERSEDED"),
    ],
)
def test_a_call_that_is_turned_away_was_not_executed(kind: type[TurnedAwayError], reason: str | None) -> None:
    error = kind()
    assert error.context == {"outcome": "not_executed", **({"reason": reason} if reason else {})}
    assert error.may_be_retried and error.hint


@pytest.mark.parametrize("kind", OURS + NODES)
def test_every_error_is_documented_and_drawn_in_the_tree(kind: type[Exception]) -> None:
    assert (kind.__doc__ and kind.__doc__.strip().endswith(".")) or "Attributes:" in (kind.__doc__ or "")
    module = errors if issubclass(kind, HoldfastError) else node_errors
    assert kind.__name__ in (module.__doc__ or "")


def made(kind: type[Exception]) -> Exception:
    if issubclass(kind, StorageError):
        return kind("get", bucket="bucket", key="key", detail=PATH)
    return kind(PATH)


@pytest.mark.parametrize("kind", [*NODES, *STORES, OSError])
def test_every_error_of_storage_and_the_node_has_a_reason(kind: type[Exception]) -> None:
    reason, sentence = faults.reason_of(made(kind))
    assert reason.replace("_", "").isupper()
    assert sentence


@pytest.mark.parametrize("target", [BackupCreateError, BackupRestoreError])
@pytest.mark.parametrize("kind", [*NODES, *STORES, OSError])
def test_an_error_shows_the_caller_no_path_of_the_node(kind: type[Exception], target: type[BackupCreateError]) -> None:
    about_the_callers_tree = issubclass(kind, (node_errors.TreeError, node_errors.PathError))
    with pytest.raises(HoldfastError) as raised, faults.failing_as(target, "made"):
        raise made(kind)
    if issubclass(kind, TransferCancelledError):
        assert type(raised.value) is OperationCancelledError
        return
    assert type(raised.value) is target
    assert raised.value.context["reason"]
    assert raised.value.__cause__ is None
    assert (PATH in f"{raised.value} {raised.value.hint} {raised.value.context}") == about_the_callers_tree


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_as_no_space(number: int) -> None:
    with pytest.raises(BackupRestoreError) as raised, faults.failing_as(BackupRestoreError, "restored"):
        raise OSError(number, "full", PATH)
    assert raised.value.context == {"reason": "NO_SPACE"}
    assert PATH not in str(raised.value)


def test_an_unknown_error_gets_no_reason() -> None:
    with pytest.raises(LookupError):
        faults.reason_of(ValueError("x"))
    with pytest.raises(ZeroDivisionError), faults.failing_as(BackupRestoreError, "restored"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), "OUT_OF_MEMORY"), (RuntimeError("can't start new thread"), "NO_PROCESSES")],
)
def test_a_lack_of_threads_or_memory_is_reported_as_such(error: Exception, reason: str) -> None:
    with pytest.raises(BackupRestoreError) as raised, faults.failing_as(BackupRestoreError, "restored"):
        raise error
    assert raised.value.context == {"reason": reason}
    with pytest.raises(RuntimeError), faults.starvation_told():
        raise RuntimeError("something else")
