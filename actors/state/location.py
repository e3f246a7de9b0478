"""The location of a sandbox's files when it wakes, decided from the node's record and the state document.

the node has a record   the bucket's state says              the actor
yes                     nothing, or never taken up           takes up what is here
yes                     here                                 takes up what is here
yes                     nowhere: put to sleep from here      takes up what is here: at least as new as the backups
otherwise               nowhere: put to sleep with backups   brings them back; what is here is out of date
no                      nothing, or never taken up           begins afresh
no                      here (the disk was lost, or an
                        earlier recovery was cut short)      recovers the checkpoints
yes or no               another node, which is lost          recovers the checkpoints; what is here is out of date
yes or no               another node, which is not           refuses
yes                     that is damaged                      takes up what is here, and writes the state anew
no                      that is damaged                      refuses, until the sandbox is deleted
yes or no               a later release has written it       refuses
yes                     the bucket does not answer           takes up what is here, and finds out later
no                      the bucket does not answer           refuses: it might begin afresh what exists elsewhere
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from actors import faults
from actors.errors import SandboxUnavailableError
from actors.state.document import NodeRef
from storage.errors import CorruptMetadataError, DocumentError
from storage.metadata import SandboxState

DAMAGED_HINT = (
    "Or delete the sandbox, and begin afresh under the same name: all its backups stay, and can be restored there."
)


class Origin(StrEnum):
    """Where the content comes from with which a sandbox is taken up."""

    HERE = "here"
    AFRESH = "afresh"
    SLEEP = "sleep"
    LOSS = "loss"

    @property
    def is_elsewhere(self) -> bool:
        """Whether the content has to be fetched from checkpoints."""
        return self in (Origin.SLEEP, Origin.LOSS)


def origin(
    state: SandboxState | None, *, has_record: bool, place: NodeRef, is_lost: Callable[[str, str | None], bool]
) -> Origin:
    """The table above, for a bucket that answers.

    Args:
        state: what the bucket has.
        has_record: whether this node has a record of the sandbox.
        place: this node.
        is_lost: whether the node of an identity, and of a name in the cluster, is gone for good.

    Raises:
        SandboxUnavailableError: the files are on another node.
    """
    if state is None or not was_taken_up(state):
        return Origin.HERE if has_record else Origin.AFRESH
    if state.node is None:
        return Origin.HERE if has_record and state.slept_on == place.identity else Origin.SLEEP
    if state.node == place.identity:
        return Origin.HERE if has_record else Origin.LOSS
    if is_lost(state.node, state.cluster_node):
        return Origin.LOSS
    raise SandboxUnavailableError(
        "The sandbox's files are on another node of the cluster, which is full or does not answer.",
        hint="Try again later, or bring that node back.",
        context={"outcome": "not_executed", "reason": "ELSEWHERE"},
    )


def was_taken_up(state: SandboxState) -> bool:
    """Whether an actor ever had the sandbox."""
    return state.epoch > 0 or state.node is not None


def may_be_here(state: SandboxState | None, place: NodeRef) -> bool:
    """Whether a sandbox that this node has a record of is this node's still."""
    return state is None or not was_taken_up(state) or place.identity in (state.node, state.slept_on)


def damaged(error: DocumentError, *, has_record: bool) -> Origin:
    """The table above, for a state that cannot be used. Raises DocumentDamagedError."""
    if has_record and isinstance(error, CorruptMetadataError):
        return Origin.HERE
    if isinstance(error, CorruptMetadataError):
        raise faults.damaged(error, hint="If the node with the sandbox's files is down, bring it back. " + DAMAGED_HINT)
    raise faults.damaged(error)


def unknown(*, has_record: bool) -> Origin:
    """The table above, for a bucket that does not answer. Raises SandboxUnavailableError."""
    if has_record:
        return Origin.HERE
    raise SandboxUnavailableError(
        "The bucket does not say whether the sandbox exists elsewhere.",
        hint="Try again when the bucket answers; the log says what is wrong with it.",
        context={"outcome": "not_executed", "reason": "STORAGE_UNAVAILABLE"},
    )
