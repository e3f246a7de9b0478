"""The change of a sandbox's labels in the bucket, made by the service while an actor may write the same document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from actors.errors import StorageUnavailableError
from actors.state.document import StateDocument, StateRead
from storage.catalog import BackupCatalog
from storage.errors import PreconditionFailedError, StoreUnavailableError
from storage.metadata import SandboxState


def relabelled(
    catalog: BackupCatalog, tenant: str, sandbox_id: str, change: Callable[[Mapping[str, str]], dict[str, str]]
) -> dict[str, str]:
    """Changes the labels of a sandbox, and nothing else of its state; returns the new labels.

    `change` makes the new labels from the old ones. It is called again if the state was written by others meanwhile. A
    sandbox without a state gets one. Where the bucket has no conditional writes, one of two changes in the same instant
    can be lost.

    Raises:
        StorageUnavailableError: the labels may or may not have been changed; try again.
        StorageError: the state could not be read; nothing was changed.
    """
    document = StateDocument(catalog, tenant, sandbox_id)
    found = document.find()
    if found and change(found.state.labels) == found.state.labels:
        return found.state.labels
    is_begun = False

    def relabel(state: SandboxState | None) -> SandboxState:
        nonlocal is_begun
        is_begun = True
        old = state or SandboxState(id=sandbox_id, tenant=tenant, created_at=datetime.now(UTC))
        return old.model_copy(update={"labels": change(old.labels)})

    try:
        return document.update(relabel, known=StateRead(found)).state.labels
    except PreconditionFailedError:
        raise StorageUnavailableError(
            "The sandbox's state was written by others again and again.", hint="Set the labels again."
        ) from None
    except StoreUnavailableError:
        if not is_begun:
            raise
        raise StorageUnavailableError(
            "The bucket did not answer while the labels were written.",
            hint="Set them again.",
            context={"outcome": "unknown"},
        ) from None
