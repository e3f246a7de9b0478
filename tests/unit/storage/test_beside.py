from __future__ import annotations

import threading

import pytest

from storage.beside import in_a_thread


def test_a_task_goes_on_while_its_caller_does_and_its_result_is_waited_for() -> None:
    may_end = threading.Event()
    wait = in_a_thread(lambda: may_end.wait(30) and threading.get_ident())
    may_end.set()
    assert wait() not in (False, threading.get_ident())


def test_the_error_of_a_task_is_raised_where_its_end_is_waited_for() -> None:
    nothing: dict[str, int] = {}
    wait = in_a_thread(lambda: nothing["a key"])
    with pytest.raises(KeyError):
        wait()


def test_a_task_is_done_at_once_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert in_a_thread(threading.get_ident)() == threading.get_ident()
