"""Waits for a backup or a restore: draws a progress bar, and cancels the operation on the server at Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from actors.errors import HoldfastError
from actors.models import Operation, OperationKind

if TYPE_CHECKING:
    from actors.rpc.calls import Call

POLL_S = 0.2

T = TypeVar("T")


class Watched(Protocol):
    """The part of `SandboxCalls` that watching needs."""

    def operation(self) -> Call[Operation | None]: ...
    def cancel(self) -> Call[bool]: ...


def supervised(call: Call[T], calls: Watched, *, kind: OperationKind, dir: str, visible: bool) -> T:
    """Runs a backup or a restore to its end.

    The first Ctrl-C cancels it on the server and waits for the outcome: an operation that can no longer be undone is
    completed and reported as such. The second Ctrl-C stops waiting.

    Args:
        call: the operation; it runs in a thread.
        calls: the calls to its sandbox.
        kind: its kind, to tell it from other callers' operations on the same sandbox.
        dir: its directory, for the same reason.
        visible: True to draw its progress.
    """
    with _interrupts() as interrupted, meter(visible=visible) as display:
        future = _in_background(call)
        while not future.done():
            wait([future], timeout=POLL_S)
            if future.done() or not (visible or interrupted.is_set()):
                continue
            operation = _current(calls)
            ours = operation is not None and operation.kind is kind and operation.dir == dir
            if interrupted.is_set() and ours:
                calls.cancel().result()
            display.show("cancelling" if interrupted.is_set() else None, operation if ours else None)
    return future.result()


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Records the first Ctrl-C instead of raising it, so that none is lost between two lines of the caller."""
    interrupted = threading.Event()

    def count(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    before = signal.signal(signal.SIGINT, count)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _in_background(call: Call[T]) -> Future[T]:
    future: Future[T] = Future()

    def work() -> None:  # the top frame of a thread: the waiter raises its errors
        try:
            future.set_result(call.result())
        except BaseException as e:
            future.set_exception(e)

    threading.Thread(target=work, name="operation", daemon=True).start()
    return future


def _current(calls: Watched) -> Operation | None:
    """The running operation; None also if asking fails, because the operation itself will report the error."""
    try:
        return calls.operation().result()
    except HoldfastError:
        return None


class _Bar(ProgressColumn):
    """A bar if the total is known; else nothing beside the spinner."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = BarColumn(bar_width=32)

    def render(self, task: Task) -> RenderableType:
        return Text() if task.total is None else self._bar.render(task)


class _Amount(ProgressColumn):
    """`120/900 files 13 %`, or bytes and their rate."""

    def render(self, task: Task) -> Text:
        done = int(task.completed)
        if task.fields.get("unit") == "bytes" and (done or task.total is not None):
            total = "" if task.total is None else f"/{decimal(int(task.total))}"
            rate = "" if task.speed is None else f"  {decimal(int(task.speed))}/s"
            return Text(f"{decimal(done)}{total}{rate}")
        if task.total is None:
            return Text()
        return Text(f"{done}/{int(task.total)} files  {task.percentage:.0f} %")


class Meter:
    """A bar on stderr that follows the phases of an operation, or the bytes of a transfer."""

    def __init__(self, *, visible: bool) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            _Bar(),
            _Amount(),
            console=Console(stderr=True),
            transient=True,
            disable=not visible,
        )
        self._task = self._progress.add_task("waiting", total=None)
        self._shown: tuple[str, bool] = ("waiting", False)

    def show(self, title: str | None, operation: Operation | None) -> None:
        """Draws the operation's phase, under `title` if given. Without an operation, draws only the title, if any."""
        if operation is not None:
            name = title or operation.phase
            self.amount(name, done=operation.done, total=operation.total or None, unit=operation.unit)
        elif title is not None:
            self.amount(title, done=0, total=None, unit="files")

    def amount(self, title: str, *, done: int, total: int | None, unit: str) -> None:
        """Draws `done` of `total`. Without a total, draws only a spinner and, for bytes, their number."""
        if self._shown != (title, total is not None):
            self._shown = (title, total is not None)
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task(title, total=total, unit=unit)
        self._progress.update(self._task, completed=done, total=total, unit=unit)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()


@contextmanager
def meter(*, visible: bool) -> Iterator[Meter]:
    """Shows a meter on the screen as long as the block runs."""
    with Meter(visible=visible) as display:
        yield display
