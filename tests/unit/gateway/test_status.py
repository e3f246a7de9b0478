from __future__ import annotations

from collections.abc import Iterator

import pytest

from actors.errors import HoldfastError, InvalidRequestError
from gateway.errors import MalformedBodyError
from gateway.status import STATUS, status_of


def _family(cls: type[HoldfastError]) -> Iterator[type[HoldfastError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _family(sub)


@pytest.mark.parametrize("cls", list(dict.fromkeys(_family(HoldfastError))))
def test_every_error_has_a_status(cls: type[HoldfastError]) -> None:
    assert cls.code in STATUS
    assert 400 <= status_of(cls("message")) < 600


def test_every_code_in_the_table_belongs_to_an_error() -> None:
    assert {cls.code for cls in _family(HoldfastError)} >= set(STATUS)


def test_a_retryable_error_has_status_429_or_503() -> None:
    assert all(STATUS[cls.code] in (429, 503) for cls in _family(HoldfastError) if cls.retryable)


def test_a_body_that_is_not_json_is_400_and_a_bad_value_422() -> None:
    assert status_of(MalformedBodyError("m")) == 400
    assert status_of(InvalidRequestError("m")) == 422
    assert MalformedBodyError.code == InvalidRequestError.code
