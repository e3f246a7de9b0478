"""The command line's connection to the cluster: the one its job runs in, or the one that `holdfast serve` started."""

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
    """Where the commands get their sandboxes from."""

    def sandbox(self, sandbox_id: str, *, tenant: str, address: str | None, data_dir: Path | None) -> Sandbox: ...
    def service(self, *, tenant: str, address: str | None, data_dir: Path | None) -> ServiceCalls: ...


class RayDoors:
    """The doors of a Ray cluster. Raise ServiceUnavailableError where none answers.

    Ray prints warnings of the cluster on the standard output of every driver, at any time. Results alone belong there,
    in the stream that `Output` remembers; so from the first door on the process's `sys.stdout` is its stderr.
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
    """Takes what `holdfast serve` has left for its clients into the environment. What is set already wins.

    Has to happen before Ray is imported, which reads these names once. A file that is absent, or that
    belongs to somebody else, is no error; nor is one of another cluster than RAY_ADDRESS names, whose
    credentials would be the wrong ones.

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
    """The environment's settings. Raises InvalidRequestError, naming what is wrong with them."""
    from pydantic import ValidationError

    from actors.models import invalid
    from actors.settings import Settings

    try:
        return Settings()
    except ValidationError as e:
        raise invalid(e) from None
