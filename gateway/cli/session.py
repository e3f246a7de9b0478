"""The options that all commands share, and the session made from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from actors.models import DEFAULT_TENANT
from gateway.cli.connection import Doors, RayDoors
from gateway.cli.output import Output

if TYPE_CHECKING:
    from actors.client import Sandbox, ServiceCalls

P = ParamSpec("P")
_SHARED = "Common options"


@dataclass(frozen=True, slots=True)
class Session:
    """One run of one command: its tenant, its cluster and its output."""

    output: Output
    doors: Doors
    tenant: str
    address: str | None
    data_dir: Path | None

    def sandbox(self, sandbox_id: str) -> Sandbox:
        """The sandbox of this name. Raises InvalidRequestError, ServiceUnavailableError."""
        return self.doors.sandbox(sandbox_id, tenant=self.tenant, address=self.address, data_dir=self.data_dir)

    def service(self) -> ServiceCalls:
        """The calls that concern the whole tenant. Raises ServiceUnavailableError."""
        return self.doors.service(tenant=self.tenant, address=self.address, data_dir=self.data_dir)


def _shared(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Option(help="Whose sandboxes.", rich_help_panel=_SHARED)] = DEFAULT_TENANT,
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster, if it is not this job's own.", rich_help_panel=_SHARED)
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The data directory of `holdfast serve`.", rich_help_panel=_SHARED)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=_SHARED)] = False,
) -> Session:
    return Session(
        output=Output(as_json=as_json),
        doors=ctx.obj or RayDoors(),
        tenant=tenant,
        address=address,
        data_dir=data_dir,
    )


def with_session(command: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """Gives a command the shared options; it receives their `Session` as its first argument."""
    shared = inspect.signature(_shared, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    def run(**values: Any) -> None:
        session = _shared(**{name: values.pop(name) for name in shared})
        command(session, **values)  # type: ignore[call-arg]

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared.values())]
    run.__name__ = command.__name__
    run.__doc__ = command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
