"""Commands: their requests, output and results."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from actors.models.base import Model
from actors.models.paths import SandboxPath

MAX_TIMEOUT_MS = 100 * 366 * 86_400_000
MAX_VARIABLES = 1024
"""Of a command's environment. A box is told of each by three words, and takes 9,000 in all. Source: bubblewrap 0.8."""
MAX_STRING_BYTES = 131_071
"""Of one argument or variable. Source: MAX_ARG_STRLEN of execve(2), which counts the NUL at its end."""
MAX_COMMAND_BYTES = 1_000_000
"""Of both together: half of what execve(2) takes with the usual limit of 8 MiB on the stack."""
MAX_INPUT_BYTES = 512 * 1024
"""Of an input that comes with its command: in base64 it fits into a JSON body of 1 MiB. Larger ones are streamed."""


class ExecRequest(Model):
    """A command. `argv` is passed as it is, without a shell; `timeout_ms` of None means the service's limit.

    Its standard input is `stdin` (text, in UTF-8) or `stdin_base64` (bytes), at most 512 KiB. With `stdin_stream` it is
    sent while the command runs. Without any of them it is /dev/null.
    """

    argv: Annotated[list[str], Field(min_length=1, max_length=4096)]
    timeout_ms: Annotated[int, Field(gt=0, le=MAX_TIMEOUT_MS)] | None = None
    cwd: SandboxPath = "/workspace"
    env: Annotated[dict[str, str], Field(max_length=MAX_VARIABLES)] = {}
    stdin: str | None = None
    stdin_base64: Annotated[str, Field(max_length=MAX_INPUT_BYTES * 4 // 3 + 4)] | None = None
    stdin_stream: bool = False

    def model_post_init(self, context: Any, /) -> None:
        words = [*self.argv, *self.env, *self.env.values()]
        if any("\0" in word for word in words):
            raise ValueError("argv and env must not contain NUL")
        if not self.argv[0]:
            raise ValueError("the first word of argv must not be empty")
        if any(not name or "=" in name for name in self.env):
            raise ValueError("names in env must be non-empty and without '='")
        strings = [*self.argv, *(f"{name}={value}" for name, value in self.env.items())]
        lengths = [len(string.encode("utf-8", "surrogateescape")) for string in strings]
        if max(lengths) > MAX_STRING_BYTES:
            raise ValueError(f"each word of argv, and each NAME=value of env, must be at most {MAX_STRING_BYTES} bytes")
        if sum(lengths) > MAX_COMMAND_BYTES:
            raise ValueError(f"argv and env together must be at most {MAX_COMMAND_BYTES:,} bytes")
        if (self.stdin is not None) + (self.stdin_base64 is not None) + self.stdin_stream > 1:
            raise ValueError("only one of stdin, stdin_base64 and stdin_stream can be given")
        if len(self.given_input or b"") > MAX_INPUT_BYTES:
            raise ValueError(f"an input of more than {MAX_INPUT_BYTES:,} bytes has to be streamed (stdin_stream)")

    @property
    def given_input(self) -> bytes | None:
        """The input that comes with the command; None if there is none, or if it is streamed."""
        if self.stdin is not None:
            return self.stdin.encode("utf-8", "surrogateescape")
        if self.stdin_base64 is None:
            return None
        try:
            return base64.b64decode(self.stdin_base64, validate=True)
        except ValueError:
            raise ValueError("stdin_base64 must be base64") from None


class Started(Model):
    """The beginning of a command whose input is streamed: from now on it can be sent to `command_id`."""

    command_id: str


class Output(Model):
    """A piece of a command's output, as it came."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class Exit(Model):
    """The end of a command. A signal n gives 128 + n, as in a shell."""

    exit_code: int


ExecEvent: TypeAlias = Output | Exit


class ExecResult(Model):
    """A command's whole result, for callers that do not stream."""

    exit_code: int
    stdout: bytes
    stderr: bytes
