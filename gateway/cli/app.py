"""The command `holdfast`: its table of commands, and the translation of errors to exit statuses.

0 success; 1 an error of ours; 2 wrong usage; 130 interrupted. `exec` exits with its command's status.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from actors.errors import HoldfastError
from gateway.cli.output import Output

if TYPE_CHECKING:
    from gateway.cli.connection import Doors

FAILED, USAGE, INTERRUPTED = 1, 2, 130

COMMANDS = {
    "serve": ("gateway.cli.serve", "serve", "Run the service."),
    "exec": ("gateway.cli.commands", "exec_command", "Run a command in a sandbox."),
    "cp": ("gateway.cli.files", "copy", "Copy a file into or out of a sandbox."),
    "ls": ("gateway.cli.files", "list_files", "List a directory of a sandbox, or of a backup."),
    "diff": ("gateway.cli.contents", "diff", "Show what was added, changed and removed from a backup to another one."),
    "backup": ("gateway.cli.backups", "backup", "Back a directory up; prints the backup's id."),
    "restore": ("gateway.cli.backups", "restore", "Restore a backup."),
    "fork": ("gateway.cli.forks", "fork", "Make many sandboxes from one backup."),
    "forget": ("gateway.cli.forget", "forget", "Give up directories of a sandbox that cannot be brought back."),
    "adopt": ("gateway.cli.backups", "adopt", "Check and sign backups that nobody has signed, such as Cloudflare's."),
    "flatten": ("gateway.cli.backups", "flatten", "Make full backups of what incremental ones hold."),
    "cancel": ("gateway.cli.backups", "cancel", "Cancel the backup or restore that a sandbox is busy with."),
    "list": ("gateway.cli.inventory", "list_all", "List the sandboxes, or the backups of one."),
    "inspect": ("gateway.cli.inventory", "inspect", "Show everything that is known of a sandbox or a backup."),
    "events": ("gateway.cli.history", "events", "Show what happened to a sandbox lately, newest first."),
    "label": ("gateway.cli.history", "label", "Set and remove labels of a sandbox."),
    "retention": ("gateway.cli.retention", "retention", "Show or change which backups of a sandbox are kept."),
    "delete": ("gateway.cli.inventory", "delete", "Delete a sandbox with its files, or a backup."),
    "gc": ("gateway.cli.operations", "collect", "Remove expired and orphaned objects from the bucket."),
    "lifecycle": ("gateway.cli.operations", "lifecycle", "Show the bucket's lifecycle rules, or install them."),
    "doctor": ("gateway.cli.operations", "doctor", "Check what this machine offers."),
}
"""Name -> module, function, and the line in `holdfast --help`."""


class _Commands(TyperGroup):
    """Imports a command when it runs, not when it is listed: importing the models takes longer than the whole help."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        if name not in COMMANDS:
            return name, listed, rest
        module, function, _ = COMMANDS[name]
        alone = typer.Typer(add_completion=False)
        alone.command(name)(getattr(import_module(module), function))
        return name, typer.main.get_command(alone), rest


def _listed() -> None:
    """Stands in the list for a command that is not imported yet."""


app = typer.Typer(
    name="holdfast",
    help="Durable sandboxes on Ray: back a directory up, restore it as a copy-on-write overlay.",
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, (_, _, _line) in COMMANDS.items():
    app.command(_name, help=_line)(_listed)


def main(argv: Sequence[str] | None = None, *, doors: Doors | None = None) -> int:
    """Runs one command line and returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    output = Output(as_json="--json" in words[: words.index("--") if "--" in words else None])
    try:
        status = typer.main.get_command(app).main(words, prog_name="holdfast", standalone_mode=False, obj=doors)
        output.results.flush()
    except HoldfastError as e:
        output.error(e)
        return FAILED
    except TyperException as e:
        output.failure(code="USAGE", message=e.format_message(), context={}, hint="See `holdfast --help`.")
        return USAGE
    except (Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.results.fileno())  # Python flushes once more as it ends
        if not isinstance(e, BrokenPipeError):
            output.note_failure(e)
        return FAILED
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
