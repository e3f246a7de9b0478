"""The input of a running command."""

from __future__ import annotations

import os
import select
import threading
import time
from typing import IO

from actors.errors import InputTakenError


class CommandInput:
    """The writing side of a command's standard input. It belongs to one writer, the first that uses it. Thread-safe.

    Nothing is kept here: a writer waits until the command has read enough, for as long as the command runs. A command
    that ends, or closes its input, lets the writer go on; what it has not read is lost, as in a shell's pipe.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        """Takes over the pipe."""
        self._pipe = pipe
        self._closing = os.eventfd(0)
        """Readable once `close` is called: this wakes a writer that waits for the command."""
        self._is_open = True
        self._is_sent = False
        self._using = threading.Lock()
        self._writer: str | None = None
        self._claiming = threading.Lock()
        self._heard_at = time.monotonic()
        os.set_blocking(pipe.fileno(), False)

    def write(self, data: bytes, *, writer: str) -> bool:
        """Passes bytes on to the command; returns when it has taken all of them. No bytes only ask whether it reads.

        Returns False if the command has ended or has closed its input.

        Raises:
            InputTakenError: the input belongs to another writer, or has been sent to its end.
        """
        self._claim(writer)
        if not data and self._using.locked():  # the same writer waits here already
            return True
        with self._using:
            if self._is_sent:
                raise _taken()
            rest = memoryview(data)
            while rest and self._waits_for_room():
                try:
                    rest = rest[os.write(self._pipe.fileno(), rest) :]
                except BrokenPipeError:
                    break
            self._heard_at = time.monotonic()
            return not rest and self._is_open and not self._has_no_reader()

    def end(self, *, writer: str) -> None:
        """Lets the command read the end of its input. Repeatable; raises as `write`."""
        self._claim(writer)
        with self._using:
            self._is_sent = True
            if self._is_open:
                self._pipe.close()

    @property
    def silent_s(self) -> float:
        """The time since the writer was last heard of; 0 while it waits here, and once it has sent everything."""
        return 0.0 if self._is_sent or self._using.locked() else time.monotonic() - self._heard_at

    def is_used_by(self, writer: str) -> bool:
        """True if the input belongs to this writer, who has not sent all of it."""
        return self._writer == writer and not self._is_sent

    def close(self) -> None:
        """Sends a waiting writer away and closes the pipe, once the command has ended. Call it once."""
        os.eventfd_write(self._closing, 1)
        with self._using:
            self._is_open = False
            self._pipe.close()
            os.close(self._closing)

    def _claim(self, writer: str) -> None:
        with self._claiming:
            if self._writer not in (None, writer):
                raise _taken()
            self._writer = writer

    def _waits_for_room(self) -> bool:
        """Waits until the pipe has room, or no reader. Returns False if the command has ended."""
        if not self._is_open:
            return False
        poll = select.poll()
        poll.register(self._pipe.fileno(), select.POLLOUT)
        poll.register(self._closing, select.POLLIN)
        return self._closing not in dict(poll.poll())

    def _has_no_reader(self) -> bool:
        """Source: pipe(7) and poll(2): the writing end of a pipe without readers has POLLERR."""
        poll = select.poll()
        poll.register(self._pipe.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))


def _taken() -> InputTakenError:
    return InputTakenError("The command's input was sent already, or is being sent by somebody else.")
