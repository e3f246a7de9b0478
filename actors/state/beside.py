"""The change of a sandbox's state by the service, while an actor may write the same document."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from actors.errors import StorageUnavailableError
from actors.state.document import Change, StateDocument, StateRead
from storage.catalog import BackupCatalog
from storage.errors import PreconditionFailedError, StoreUnavailableError
from storage.metadata import SandboxState
from storage.sandbox_documents import StoredState


def changed_beside_its_actor(
    catalog: BackupCatalog,
    tenant: str,
    sandbox_id: str,
    change: Change,
    *,
    what: str,
    check: Callable[[StoredState | None], object] = lambda stored: None,
) -> SandboxState:
    """Changes the fields of the state that its actor adopts (`document.OTHERS`); returns the new state.

    `change` and `check` are as for `StateDocument.update`, and called again if others have written meanwhile. A sandbox
    without a state gets one. Where the bucket has no conditional writes, one of two changes in the same instant can be
    lost. `what` is the plural name of what is changed.

    Raises:
        StorageUnavailableError: the state may or may not have been changed; try again.
        StorageError: the state could not be read; nothing was changed.
    """
    document = StateDocument(catalog.sandboxes, tenant, sandbox_id)
    found = document.find()
    if found is not None and change(found.state) == found.state:
        return found.state
    is_begun = False

    def changed(state: SandboxState | None) -> SandboxState:
        nonlocal is_begun
        is_begun = True
        return change(state or SandboxState(id=sandbox_id, tenant=tenant, created_at=datetime.now(UTC)))

    try:
        return document.update(changed, check=check, known=StateRead(found)).state
    except PreconditionFailedError:
        raise StorageUnavailableError(
            "The sandbox's state was written by others again and again.", hint=f"Set the {what} again."
        ) from None
    except StoreUnavailableError:
        if not is_begun:
            raise
        raise StorageUnavailableError(
            f"The bucket did not answer while the {what} were written.",
            hint="Set them again.",
            context={"outcome": "unknown"},
        ) from None
