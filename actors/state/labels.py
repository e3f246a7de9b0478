"""The change of a sandbox's labels in the bucket, made by the service while an actor may write the same document."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from actors.state.beside import changed_beside_its_actor
from storage.catalog import BackupCatalog
from storage.metadata import SandboxState


def relabelled(
    catalog: BackupCatalog, tenant: str, sandbox_id: str, change: Callable[[Mapping[str, str]], dict[str, str]]
) -> dict[str, str]:
    """Changes the labels of a sandbox, and nothing else of its state; returns the new labels.

    `change` makes the new labels from the old ones. Raises like `changed_beside_its_actor`.
    """

    def relabel(state: SandboxState) -> SandboxState:
        return state.model_copy(update={"labels": change(state.labels)})

    return changed_beside_its_actor(catalog, tenant, sandbox_id, relabel, what="labels").labels
