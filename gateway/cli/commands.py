"""`holdfast exec`: runs a command in a sandbox as if it ran here."""

from __future__ import annotations

import base64
import sys
from typing import Annotated

import typer

from actors.errors import InvalidRequestError
from actors.models import Exit
from gateway.cli.arguments import Box
from gateway.cli.session import Session, with_session
from gateway.cli.standard_input import passed_on


@with_session
def exec_command(
    session: Session,
    box: Box,
    argv: Annotated[list[str], typer.Argument(metavar="-- ARGV...", help="The command; no shell is involved.")],
    cwd: Annotated[str, typer.Option(help="Where it starts.")] = "/workspace",
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable for it. Repeatable.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="When to kill it.", min=0.001)] = None,
) -> None:
    """Run a command in a sandbox.

    Its output is ours and its exit status too. With --json, the document holds exit_code, and stdout and
    stderr in base64. It reads what is piped or redirected into us, to its end; of a terminal it reads nothing.
    In a shell's loop that reads lines, redirect ours from /dev/null, or it reads them.
    """
    events = session.sandbox(box).exec_stream(
        argv, cwd=cwd, env=_environment(env or []), timeout_s=timeout, stdin=passed_on()
    )
    kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    for event in events:
        if isinstance(event, Exit):
            if session.output.as_json:
                encoded = {name: base64.b64encode(b"".join(data)).decode("ascii") for name, data in kept.items()}
                session.output.result({"exit_code": event.exit_code, **encoded})
            raise typer.Exit(event.exit_code)
        if session.output.as_json:
            kept[event.stream].append(event.data)
        else:
            stream = session.output.results if event.stream == "stdout" else sys.stderr
            stream.buffer.write(event.data)
            stream.buffer.flush()


def _environment(pairs: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise InvalidRequestError("--env takes NAME=VALUE.", context={"env": name})
        values[name] = value
    return values
