"""A connection that is closed so that its last answer arrives.

Who still sends when its connection is closed gets a reset, and may never see an answer that came before it. So the
server's side alone is closed at first, and what comes is thrown away for a while. Source: RFC 9112, section 9.6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_S = 5.0


class LingeringTransport(asyncio.Transport):
    """A transport whose `close` waits for the client's end while a request is on its way. For uvicorn's protocols."""

    def __init__(self, transport: asyncio.Transport, *, is_receiving: Callable[[], bool]) -> None:
        super().__init__()
        self._transport = transport
        self._is_receiving = is_receiving
        self.lingers = False
        """Whether it is being closed, and what comes is to be thrown away."""

    def close(self) -> None:
        is_over = self.is_closing() or not self._is_receiving()
        if is_over or not self._transport.can_write_eof():
            self._transport.close()
            return
        self.lingers = True
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
