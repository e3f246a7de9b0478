"""The header that tells the first callers of a sandbox that it was recovered."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from starlette.types import Message, Receive, Scope, Send

from actors.models import RecoveredDirectory, Recovery
from actors.notices import Notice, collecting, hear
from gateway.recovery import HEADER, RecoveryNotices

AT = datetime(2026, 1, 2, tzinfo=UTC)
BACK = RecoveredDirectory(dir="/workspace", backup_id="b", taken_at=AT)
GONE = BACK.model_copy(update={"error": "BACKUP_EXPIRED"})


class Told:
    """Counts how often a notice was reported as told."""

    def __init__(self) -> None:
        self.times = 0

    def notice(self, *, lost: list[str], directories: list[RecoveredDirectory]) -> Notice:
        return Notice(
            "box", Recovery(at=AT, lost=lost, directories=directories, told=False), acknowledge=self._acknowledge
        )

    def _acknowledge(self) -> None:
        self.times += 1


def answered(notice: Notice | None, *, status: int = 200, cut: bool = False, late: bool = False) -> str | None:
    """The header's value in an answer during which a call got `notice`; with `late`, after the headers were sent."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def call() -> None:
            if notice is not None:
                hear(notice)

        if not late:
            await asyncio.create_task(call())  # like the wait for a stream's first item
        await send({"type": "http.response.start", "status": status, "headers": []})
        if late:
            await call()
        if cut:
            raise ConnectionError
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    asyncio.run(RecoveryNotices(app)({"type": "http"}, receive, send))
    headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return headers.get(HEADER.lower())


@pytest.mark.parametrize(
    ("lost", "directories", "value"),
    [(["/tmp"], [], "lost"), (["/tmp"], [BACK], "lost"), ([], [GONE], "lost"), ([], [BACK], "restored")],
)
def test_the_header_says_whether_something_is_lost_or_only_older(
    lost: list[str], directories: list[RecoveredDirectory], value: str
) -> None:
    told = Told()
    assert answered(told.notice(lost=lost, directories=directories)) == value
    assert told.times == 1


def test_an_answer_without_news_has_no_header() -> None:
    assert answered(None) is None


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_an_error_carries_the_header_and_does_not_count_as_told(status: int) -> None:
    told = Told()
    assert answered(told.notice(lost=["/tmp"], directories=[]), status=status) == "lost"
    assert told.times == 0


def test_a_notice_after_the_headers_does_not_count_as_told() -> None:
    told = Told()
    assert answered(told.notice(lost=["/tmp"], directories=[]), late=True) is None
    assert told.times == 0


def test_an_answer_that_is_cut_short_does_not_count_as_told() -> None:
    told = Told()
    with pytest.raises(ConnectionError):
        answered(told.notice(lost=["/tmp"], directories=[]), cut=True)
    assert told.times == 0


def test_without_a_collector_the_notice_is_logged_and_counts_as_told(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    hear(told.notice(lost=["/tmp"], directories=[BACK]))
    assert told.times == 1
    assert "box" in caplog.text and "/tmp" in caplog.text and "/workspace as of 2026-01-02" in caplog.text


def test_a_collected_notice_is_not_yet_told() -> None:
    told = Told()
    with collecting() as heard:
        hear(notice := told.notice(lost=["/tmp"], directories=[]))
    assert heard == [notice] and told.times == 0
