"""A transport that closes its connection so that the last answer arrives.

A client that still sends when its connection is closed gets a reset, and may never see the answer sent before. So only
the server's side is closed at first, and incoming bytes are discarded for a while. Source: RFC 9112, section 9.6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_S = 5.0


class LingeringTransport(asyncio.Transport):
    """A transport that, while a request still arrives, closes its own side first and the rest after `LINGER_S`.

    For uvicorn's protocols.
    """

    def __init__(self, transport: asyncio.Transport, *, is_receiving: Callable[[], bool]) -> None:
        super().__init__()
        self._transport = transport
        self._is_receiving = is_receiving
        self.lingers = False
        """True while it is being closed; incoming bytes are then to be discarded."""

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
