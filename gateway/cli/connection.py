"""The command line's connection to the cluster: its own job's, or the one that `holdfast serve` started."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from actors.errors import InvalidRequestError

if TYPE_CHECKING:
    from actors.client import Sandbox, ServiceCalls
    from actors.settings import Settings

CLIENT_ENV = "client.env"
CLIENT_SETTINGS = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


class Doors(Protocol):
    """Source of the calls to sandboxes and to the service, for the commands."""

    def sandbox(self, sandbox_id: str, *, tenant: str, address: str | None, data_dir: Path | None) -> Sandbox: ...
    def service(self, *, tenant: str, address: str | None, data_dir: Path | None) -> ServiceCalls: ...


class RayDoors:
    """The calls to a Ray cluster. The methods raise ServiceUnavailableError if no cluster answers.

    Ray prints warnings of the cluster to the standard output of every Ray driver, at any time. Only results belong
    there, in the stream that `Output` remembers; so the first call sets the process's `sys.stdout` to its stderr.
    """

    def sandbox(self, sandbox_id: str, *, tenant: str, address: str | None, data_dir: Path | None) -> Sandbox:
        """One sandbox."""
        read_client_env(data_dir)
        sys.stdout = sys.stderr
        from actors.client import get_sandbox

        return get_sandbox(sandbox_id, tenant=tenant, address=address)

    def service(self, *, tenant: str, address: str | None, data_dir: Path | None) -> ServiceCalls:
        """The calls that concern a whole tenant."""
        read_client_env(data_dir)
        sys.stdout = sys.stderr
        from actors.client import get_service

        return get_service(tenant=tenant, address=address)


def read_client_env(data_dir: Path | None = None) -> None:
    """Adds the variables that `holdfast serve` wrote for its clients to the environment. Variables already set win.

    Call it before Ray is imported, which reads these names once. It ignores a file that is absent or unreadable, and
    one for another cluster than RAY_ADDRESS names, whose credentials would be wrong.

    Raises:
        InvalidRequestError: the folder was given, and is not there.
    """
    if data_dir is None:
        data_dir = settings().data_dir
    elif not os.path.isdir(data_dir):
        raise InvalidRequestError(f"{data_dir} is no directory that can be read.")
    try:
        text = (data_dir / CLIENT_ENV).read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    left = {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}
    address = left.get("RAY_ADDRESS", "")
    if os.environ.get("RAY_ADDRESS", address) != address:
        return
    for name in CLIENT_SETTINGS:
        if name in left:
            os.environ.setdefault(name, left[name])


def settings() -> Settings:
    """Reads the settings from the environment. Raises InvalidRequestError, naming what is wrong with them."""
    from pydantic import ValidationError

    from actors.models import invalid
    from actors.settings import Settings

    try:
        return Settings()
    except ValidationError as e:
        raise invalid(e) from None
