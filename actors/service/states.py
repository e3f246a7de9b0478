"""The service's reads of sandboxes' states, with the errors that its callers get."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from actors.errors import SandboxNotFoundError
from actors.faults import damaged, reading
from actors.state.location import DAMAGED_HINT
from storage.catalog import BackupCatalog
from storage.errors import CorruptMetadataError
from storage.metadata import SandboxState


@contextmanager
def reading_state() -> Iterator[None]:
    """Converts errors like `reading`. The error of a damaged state says how the sandbox gets a sound one."""
    with reading("sandbox"):
        try:
            yield
        except CorruptMetadataError as e:
            raise damaged(e, hint=f"Run a command in the sandbox: that writes the state anew. {DAMAGED_HINT}") from None


def state_of(catalog: BackupCatalog | None, tenant: str, sandbox_id: str) -> SandboxState:
    """Reads a sandbox's state. Raises SandboxNotFoundError, also without a bucket."""
    found = None
    if catalog is not None:
        with reading_state():
            found = catalog.sandboxes.find_state(tenant, sandbox_id)
    if found is None:
        raise SandboxNotFoundError("There is no such sandbox.", context={"sandbox": sandbox_id})
    return found.state
