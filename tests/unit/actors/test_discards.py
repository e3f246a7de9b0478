"""Discards of replaced layers in the background."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import cast

import pytest

from actors.node.errors import MountBusyError
from actors.node.layers import Layer, Layers
from actors.sandbox.discards import Discards


class Slow:
    """Layers whose discard waits for `go_on`."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.discarded: list[str] = []
        self.fails: set[str] = set()

    def discard(self, layer: Layer) -> None:
        assert self.go_on.wait(30)
        if layer.id in self.fails:
            raise MountBusyError("in use")
        self.discarded.append(layer.id)


def layer(name: str) -> Layer:
    return Layer(Path("/layers") / name, Path("/archive"), "0" * 64)


def made() -> tuple[Slow, Discards]:
    slow = Slow()
    return slow, Discards(cast("Layers", slow))


def test_the_caller_does_not_wait_and_all_are_discarded_in_order() -> None:
    slow, discards = made()
    for name in "abc":
        discards.add(layer(name))
    assert slow.discarded == []
    slow.go_on.set()
    discards.wait()
    assert slow.discarded == ["a", "b", "c"]
    discards.add(layer("d"))
    discards.wait()
    assert slow.discarded[-1] == "d"


def test_a_failure_does_not_keep_the_others() -> None:
    slow, discards = made()
    slow.fails = {"a"}
    slow.go_on.set()
    for name in "ab":
        discards.add(layer(name))
    discards.wait()
    assert slow.discarded == ["b"]


def test_without_a_thread_the_caller_discards(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, discards = made()
    slow.go_on.set()

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    discards.add(layer("a"))
    assert slow.discarded == ["a"]


def test_too_many_at_once_make_the_caller_wait() -> None:
    slow, discards = made()
    for number in range(16):
        discards.add(layer(f"{number}"))
    late = threading.Thread(target=lambda: discards.add(layer("late")))
    late.start()
    late.join(0.05)
    assert late.is_alive()
    slow.go_on.set()
    late.join(30)
    discards.wait()
    assert len(slow.discarded) == 17
