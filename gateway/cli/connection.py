"""The command line's connection to the cluster: its own job's, or the one that `holdfast serve` started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gateway.client_env import read_client_env

if TYPE_CHECKING:
    from actors.client import Sandbox, ServiceCalls


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
