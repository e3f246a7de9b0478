"""The location of a sandbox's files when it wakes, decided from the node's record and the state document.

the node has a record   the bucket's state                   the actor
yes                     none, or no actor had it yet         uses the files here
yes                     names this node                      uses the files here
yes                     asleep in the bucket, from here      uses the files here: at least as new as the backups
otherwise               asleep in the bucket                 recovers the checkpoints; files here are out of date
no                      none, or no actor had it yet         starts with an empty sandbox
no                      names this node (its disk was lost,
                        or a recovery was interrupted)       recovers the checkpoints
yes or no               names another node, which is lost    recovers the checkpoints; files here are out of date
yes or no               names another node, not lost         refuses
yes                     is damaged                           uses the files here, and replaces the state
no                      is damaged                           refuses, until the sandbox is deleted
yes or no               is of a later release                refuses
yes                     cannot be read: no answer            uses the files here, and reads the state later
no                      cannot be read: no answer            refuses: the sandbox may exist elsewhere
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from actors import faults
from actors.errors import FilesElsewhereError, SandboxUnavailableError
from actors.state.document import NodeRef
from storage.errors import CorruptMetadataError, DocumentError
from storage.metadata import SandboxState

DAMAGED_HINT = (
    "Or delete the sandbox, and begin afresh under the same name: all its backups stay, and can be restored there."
)


class Origin(StrEnum):
    """The source of a sandbox's content as it wakes."""

    HERE = "here"
    AFRESH = "afresh"
    SLEEP = "sleep"
    LOSS = "loss"

    @property
    def is_elsewhere(self) -> bool:
        """True if the content has to be fetched from checkpoints."""
        return self in (Origin.SLEEP, Origin.LOSS)


def origin(
    state: SandboxState | None, *, has_record: bool, place: NodeRef, is_lost: Callable[[str, str | None], bool]
) -> Origin:
    """Applies the table above to a state that was read.

    Args:
        state: the bucket's state of the sandbox, or None.
        has_record: true if this node has a record of the sandbox.
        place: this node.
        is_lost: tells whether a node (identity, name in the cluster) is gone for good.

    Raises:
        FilesElsewhereError: the files are on another node, which is not lost.
    """
    if state is None or not was_taken_up(state):
        return Origin.HERE if has_record else Origin.AFRESH
    if state.node is None:
        return Origin.HERE if has_record and state.slept_on == place.identity else Origin.SLEEP
    if state.node == place.identity:
        return Origin.HERE if has_record else Origin.LOSS
    if is_lost(state.node, state.cluster_node):
        return Origin.LOSS
    raise FilesElsewhereError(
        "The sandbox's files are on another node of the cluster, which is full or does not answer.",
        hint="Try again later, or bring that node back.",
        context={"outcome": "not_executed", "reason": "ELSEWHERE"},
    )


def was_taken_up(state: SandboxState) -> bool:
    """Tells whether an actor ever had the sandbox."""
    return state.epoch > 0 or state.node is not None


def may_be_here(state: SandboxState | None, place: NodeRef) -> bool:
    """Tells whether a sandbox with a record on this node may still belong to this node."""
    return state is None or not was_taken_up(state) or place.identity in (state.node, state.slept_on)


def damaged(error: DocumentError, *, has_record: bool) -> Origin:
    """Applies the table above to a state document that cannot be used. Raises DocumentDamagedError."""
    if has_record and isinstance(error, CorruptMetadataError):
        return Origin.HERE
    if isinstance(error, CorruptMetadataError):
        raise faults.damaged(error, hint="If the node with the sandbox's files is down, bring it back. " + DAMAGED_HINT)
    raise faults.damaged(error)


def unknown(*, has_record: bool) -> Origin:
    """Applies the table above to a bucket that does not answer. Raises SandboxUnavailableError."""
    if has_record:
        return Origin.HERE
    raise SandboxUnavailableError(
        "The bucket does not say whether the sandbox exists elsewhere.",
        hint="Try again when the bucket answers; the log says what is wrong with it.",
        context={"outcome": "not_executed", "reason": "STORAGE_UNAVAILABLE"},
    )
