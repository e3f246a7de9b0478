"""Malformed and unusual HTTP requests, sent over a socket to a gateway whose cluster is in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.server import LimitedH11Protocol
from tests.support.raw_requests import Case, cases
from tests.support.wire import answered_as_documented
from tests.unit.gateway.conftest import KEY, make_gateway
from tests.unit.gateway.test_server import Listening

CASES = cases(KEY, "box")
PAUSE_S = 1.5
"""Time limit for what does not come. On a busy machine, what does come takes long, too."""


@pytest.fixture(scope="module")
def gateway() -> Iterator[tuple[str, int]]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LimitedH11Protocol, "header_limit_s", PAUSE_S)
        with Listening(make_gateway(body_idle_s=PAUSE_S).app, connections=64) as listening:
            yield "127.0.0.1", listening.port


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_raw_request_gets_a_documented_answer(
    gateway: tuple[str, int], case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    sent, expected = case
    answered_as_documented(gateway, sent, expected)
    assert not caplog.records
