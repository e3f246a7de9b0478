"""The change of a sandbox's labels in the bucket, made by the service while an actor may write the same document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from actors.errors import StorageUnavailableError
from storage.catalog import BackupCatalog
from storage.errors import PreconditionFailedError, StoreUnavailableError
from storage.metadata import SandboxState

_TRIES = 8


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
    for _ in range(_TRIES):
        found = catalog.find_state(tenant, sandbox_id)
        old = found.state if found else SandboxState(id=sandbox_id, tenant=tenant, created_at=datetime.now(UTC))
        labels = change(old.labels)
        if found and labels == old.labels:
            return labels
        try:
            catalog.write_state(old.model_copy(update={"labels": labels}), replacing=found.etag if found else None)
        except PreconditionFailedError:
            continue
        except StoreUnavailableError:
            raise StorageUnavailableError(
                "The bucket did not answer while the labels were written.",
                hint="Set them again.",
                context={"outcome": "unknown"},
            ) from None
        return labels
    raise StorageUnavailableError(
        "The sandbox's state was written by others again and again.", hint="Set the labels again."
    )
