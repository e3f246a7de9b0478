"""The reference of the command line, from Typer."""

from __future__ import annotations

import typer
from typer.cli import get_docs_for_click

from gateway.cli.app import COMMANDS, app


def commands() -> str:
    """A section for each command: its usage, arguments and options."""
    group = typer.main.get_group(app)
    context = typer.Context(group, info_name="holdfast")
    return "\n".join(_section(group, context, name) for name in COMMANDS)


def _section(group: typer.core.TyperGroup, context: typer.Context, name: str) -> str:
    """The section of one command, which is imported for it."""
    _, command, _ = group.resolve_command(context, [name])
    assert command is not None
    made: str = get_docs_for_click(obj=command, ctx=context, name=name, indent=1, call_prefix="holdfast")
    return made
