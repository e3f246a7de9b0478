"""Splitting a command's standard error at the sign that its box has been built, in pieces of any size."""

from __future__ import annotations

import pytest

from actors.node.opening import Opening

SIGN = b"WINCH      (28): IGNORE\n"


@pytest.mark.parametrize("size", [1, 2, 7, 24, 25, 100])
@pytest.mark.parametrize("before", [b"", b"bwrap: a warning\n", b"WINCH      (28): BLOCK\n", SIGN[:-1]])
@pytest.mark.parametrize("after", [b"", b"x", b"a line\n", SIGN, b"\xff\0"])
def test_the_bytes_after_the_sign_are_the_commands(before: bytes, after: bytes, size: int) -> None:
    opening, whole = Opening(), before + SIGN + after
    passed = b"".join(opening.passed(whole[at : at + size]) for at in range(0, len(whole), size))
    assert (passed, opening.is_over, opening.rest()) == (after, True, b"")


def test_without_a_sign_everything_is_kept_for_the_error() -> None:
    opening = Opening()
    assert opening.passed(b"bwrap: no ") + opening.passed(b"such thing\n") == b""
    assert not opening.is_over
    assert opening.rest() == b"bwrap: no such thing\n"
    assert opening.rest() == b""


def test_long_output_without_a_sign_is_passed_on() -> None:
    opening, much = Opening(), b"x" * 1000
    passed = b"".join(opening.passed(much) for _ in range(100))
    assert len(passed) == 100_000 and opening.is_over
