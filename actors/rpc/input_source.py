"""The sending of a file to a running command, in a thread of its own, while the caller reads the command's output."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from typing import BinaryIO

from actors.errors import INPUT_CUT_OFF, ExecStoppedError, HoldfastError, InvalidRequestError
from actors.models import TRANSFER_BYTES, ExecEvent, Started
from actors.rpc.calls import Stream
from actors.rpc.sandbox_calls import InputWriter, SandboxCalls

_PING_S = 30.0


class InputSource:
    """A file that a command reads as its input. Sent as it comes, and never held whole in memory. For one command."""

    def __init__(self, file: BinaryIO | None, *, ping_s: float = _PING_S) -> None:
        """`file` may be None for a command without streamed input. Raises InvalidRequestError.

        `ping_s` is the time after which a caller that waits for more of the file shows that it is still there.
        """
        read = getattr(file, "read1", None) or getattr(file, "read", None)
        if file is not None and read is None:
            raise InvalidRequestError("stdin must be bytes, text or a file of bytes.")
        self._read = read or io.BytesIO().read
        self._failure: Exception | None = None
        self._ping_s = ping_s
        self._has_ended = threading.Event()

    def feeding(self, calls: SandboxCalls, events: Stream[Started | ExecEvent]) -> Iterator[ExecEvent]:
        """Passes on the events of a command. Sends it the file meanwhile, from its beginning to its end.

        A read of the file that waits for more when the command ends is not interrupted, and what it gives is dropped.

        Raises:
            Exception: the error with which the file could not be read; the command was stopped.
        """
        try:
            with contextlib.closing(iter(events)) as stream:
                for event in stream:
                    if isinstance(event, Started):
                        writer = calls.command_input(event.command_id).result()
                        for act in (self._send, self._ping):
                            threading.Thread(target=act, args=(writer,), name="input", daemon=True).start()
                    else:
                        yield event
        except ExecStoppedError as e:
            if self._failure is not None and e.context.get("reason") == INPUT_CUT_OFF:
                raise self._failure from None
            raise
        finally:
            self._has_ended.set()

    def _send(self, writer: InputWriter) -> None:
        try:
            while not self._has_ended.is_set() and (data := self._read(TRANSFER_BYTES)):
                if not isinstance(data, bytes):
                    raise InvalidRequestError("stdin must be a file of bytes, not of text.")
                if not writer.send(data).result():
                    return
            writer.end().result()
        except Exception as e:  # whatever the caller's file raises
            self._failure = e
            with contextlib.suppress(HoldfastError):
                writer.cut().result()

    def _ping(self, writer: InputWriter) -> None:
        with contextlib.suppress(HoldfastError):  # all was sent, or the command has ended
            while not self._has_ended.wait(self._ping_s):
                writer.send(b"").result()
