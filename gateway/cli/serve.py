"""`holdfast serve`: runs the whole service on this machine, until Ctrl-C, SIGTERM or SIGHUP."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from pydantic import ValidationError

from actors.errors import HoldfastError, InvalidRequestError
from actors.logs import forgive_failed_output
from actors.settings import Settings

if TYPE_CHECKING:
    from gateway.embedded.machine import Machine

_ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Port = Annotated[int | None, typer.Option(help="Where the gateway listens; 0 takes a free port.", min=0, max=65_535)]
Host = Annotated[str | None, typer.Option(help="The address the gateway listens on.")]
Address = Annotated[str | None, typer.Option(help="Join this Ray cluster (auto: the one on this machine).")]
DataDir = Annotated[Path | None, typer.Option(help="Where sandboxes, backups and secrets are kept.")]


def serve(port: Port = None, host: Host = None, data_dir: DataDir = None, address: Address = None) -> None:
    """Run the service: Ray, the store, the sandboxes and the gateway.

    Without settings the backups go to an S3 server on a folder of its own. With R2 settings in the environment
    they go to R2. Ends on Ctrl-C or SIGTERM and leaves no process and no mount behind. With --address it joins a
    running cluster instead of starting one; then the sandboxes go on when it ends.
    """
    forgive_failed_output()
    given = {"port": port, "host": host, "data_dir": data_dir, "ray_address": address}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as e:
        names = "; ".join(f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in e.errors(include_input=False))
        print(f"error: a setting is wrong: {names}", file=sys.stderr)
        raise typer.Exit(2) from None
    _heed_signals()
    try:
        _run(settings)
    except _Stopped:
        pass
    except HoldfastError as e:
        print(f"error: {e.message}", file=sys.stderr)
        if e.hint:
            print(f"hint: {e.hint}", file=sys.stderr)
        _leave(1)
    print("stopped", file=sys.stderr)
    _leave(0)


def _leave(status: int) -> NoReturn:
    """Ends the process at once: threads that wait for a lost cluster would keep it alive, or crash it as it ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Stopped(BaseException):
    """Raised at SIGINT, SIGTERM or SIGHUP; everything is undone on its way out."""


def _heed_signals() -> None:
    for number in _ENDINGS:
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    # Once: a second, impatient signal must not cut the clean-up short.
    for ending in _ENDINGS:
        signal.signal(ending, signal.SIG_IGN)
    raise _Stopped


def _run(settings: Settings) -> None:
    from gateway.app import create_app
    from gateway.config import GatewayConfig
    from gateway.embedded.machine import running
    from gateway.embedded.ray_watch import RayWatch
    from gateway.server import server

    with _bound(settings.host, settings.port) as listening:
        print("starting …", file=sys.stderr, flush=True)
        with running(settings) as machine:
            _heed_signals()  # again: Ray has installed a handler of its own
            config = GatewayConfig.of(settings, machine.keys_by_tenant)
            url = f"http://{settings.host}:{listening.getsockname()[1]}"
            banner = _banner(machine, url, settings.data_dir)
            made = server(
                create_app(config),
                host=settings.host,
                port=settings.port,
                on_listening=lambda: print(banner, flush=True),
            )
            with RayWatch() as watch:
                try:
                    made.run(sockets=[listening])
                except _Stopped:
                    watch.check()
                    raise


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the port but refuses connections until the gateway listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off, which saves 40 ms per answer, only if the socket names its protocol.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as e:
        listening.close()
        raise InvalidRequestError(
            f"The gateway cannot listen on {host} port {port}: {e.strerror}.", hint="Choose another with --port."
        ) from None
    return listening


def _banner(machine: Machine, url: str, data_dir: Path) -> str:
    """The text printed at the start: where everything is, and what to try. Names the key's file, never the key."""
    elsewhere = data_dir != Settings.model_fields["data_dir"].default and machine.ray.jobs_url
    key = f"$(cat {machine.api_key_file})" if machine.api_key_file else "$SANDBOX_API_KEY"
    ray = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={machine.token_file} RAY_ADDRESS={machine.ray.jobs_url}"
    job = "ray job submit -- holdfast backup demo /workspace"
    lines = [
        f"holdfast listens on {url} (API documentation at {url}/docs)",
        f"backups go to {machine.store}",
    ]
    if access := machine.store_access:
        lines.append(f"the store speaks S3 at {access.endpoint_url}, bucket {access.bucket}; its keys: {access.file}")
    if machine.signing_key_file:
        lines.append(
            f"backups are signed with the key in {machine.signing_key_file}: nobody can restore them without it"
        )
    if machine.missing_settings:
        lines.append(f"warning: backup and restore are off; missing: {', '.join(machine.missing_settings)}")
    lines += [f"warning: {warning}" for warning in machine.warnings]
    return "\n".join(
        [
            *lines,
            "",
            "try:",
            f"""  curl -N -H @<(echo "Authorization: Bearer {key}") -H 'Content-Type: application/json' \\""",
            f"""    {url}/v1/sandbox/demo/exec -d '{{"argv": ["sh", "-c", "echo hello > hello.txt; ls -l"]}}'""",
            f"  holdfast backup demo /workspace{f' --data-dir {data_dir.absolute()}' if elsewhere else ''}",
            "as a job:",
            f"  {ray} \\\n    {job}" if machine.ray.jobs_url else f"  {job}",
            "stop with Ctrl-C",
        ]
    )
