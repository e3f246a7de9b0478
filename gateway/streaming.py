"""Answers that are streamed out of the cluster, and stopped there when the client goes away.

uvicorn cancels nothing on a disconnect, so a streamed answer has to listen for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.cluster import ItemStream

T = TypeVar("T")
_FAREWELL_S = 1.0
"""Time limit for sending the last piece, in a server that stops, to a client that does not read."""


class Source(Generic[T]):
    """A stream of the cluster that can wait for the next item without taking it."""

    def __init__(self, stream: ItemStream[T]) -> None:
        self._stream = stream
        self._items = aiter(stream)
        self._next: asyncio.Task[T | None] | None = None

    async def begin(self, receive: Receive, *, within_s: float | None = None) -> None:
        """Waits for the first item, so that an error of the whole call becomes an HTTP error.

        Returns early, with nothing lost, after `within_s`.

        Raises:
            HoldfastError: the call failed before it produced anything.
            ClientDisconnect: the client went away; the call is stopped.
        """
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            first = self._awaited()
            await asyncio.wait({first, gone}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if first.done():
                first.result()
            elif gone.done():
                raise ClientDisconnect
        except BaseException:
            await self.close()
            raise
        finally:
            await _ended(gone)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Waits; True if the next item, the end or an error has come within the time."""
        awaited = self._awaited()
        await asyncio.wait({awaited}, timeout=timeout_s)
        return awaited.done()

    async def take(self) -> T | None:
        """The next item, or None at the end. Raises what the stream raises."""
        awaited = self._awaited()
        await asyncio.wait({awaited})
        self._next = None
        return awaited.result()

    def stop(self) -> None:
        """Stops the stream in the cluster. Returns at once; harmless after the stream has ended."""
        self._stream.close()

    async def close(self) -> None:
        """Stops the stream, in the cluster and here."""
        self.stop()
        if self._next is not None:
            await _ended(self._next)

    def _awaited(self) -> asyncio.Task[T | None]:
        if self._next is None:
            self._next = asyncio.ensure_future(_next_of(self._items))
        return self._next


class StreamedAnswer(Response):
    """Sends pieces as they come. Closes the source whatever happens: end, error, disconnect, shutdown.

    A stopping server cancels it. If the format has a place for errors, `farewell` is then the last piece; otherwise the
    connection is cut.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        source: Source[Any],
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        farewell: bytes | None = None,
    ) -> None:
        self._pieces = pieces
        self._source = source
        self._farewell = farewell
        self._has_begun = False
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ClientDisconnect
            sending.result()
        except asyncio.CancelledError:
            await _ended(sending)
            if self._farewell is None or not self._has_begun:
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await send({"type": "http.response.body", "body": self._farewell, "more_body": False})
        finally:
            self._source.stop()  # before anything is awaited: Serve cancels a request that has seen its disconnect too
            await _ended(gone)
            await _ended(sending)
            await self._source.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._has_begun = True
        async with aclosing(self._pieces) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def raw(source: Source[bytes]) -> AsyncGenerator[bytes, None]:
    """Yields the stream's bytes as they are."""
    while (piece := await source.take()) is not None:
        yield piece


async def _next_of(items: Any) -> Any:
    return await anext(items, None)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancels a task and waits until it has ended, in whatever way."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
