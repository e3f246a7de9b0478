"""The cluster as the logic of the service and of a node sees it: nodes, named actors, and their answers.

The logic knows only this protocol. `actors.rpc.ray_runtime` implements it with Ray, and tests with a script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

SLOTS = "sandbox_slots"
"""The Ray resource of slots. A node offers one slot for each awake sandbox that it can hold."""
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """One node. `id` is its name in the cluster, new each time it joins; `raylet` the address of its raylet."""

    id: str
    is_alive: bool
    slots: float
    raylet: str = ""

    @property
    def takes_sandboxes(self) -> bool:
        """True if it lives and has slots."""
        return self.is_alive and self.slots > 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a call: a value, or the name of the error's class if the call failed."""

    value: Any = None
    error: str | None = None


class NotAnsweredError(Exception):
    """The root of the reasons why a call has no answer."""


class ActorEndedError(NotAnsweredError):
    """The actor has ended, or left through its mailbox; the call was not executed."""


class ActorAwayError(NotAnsweredError):
    """The actor does not answer, or is being restarted; the call was perhaps executed. `reason` names Ray's error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NoAnswerInTimeError(NotAnsweredError):
    """The actor did not answer within the time limit; the call may still be executed."""


class WorkersNotStartedError(Exception):
    """A node has started no workers: it has just gone, or is busy."""


class Runtime(Protocol):
    """The cluster. An actor's handle sends a call by `handle.method.remote(…)`, which returns a reference at once."""

    def nodes(self) -> Sequence[ClusterNode]:
        """Returns all nodes, dead ones included."""

    def draining_nodes(self) -> Mapping[str, int]:
        """Returns the deadline of each node that is being drained, in milliseconds since 1970; 0 for none."""

    def free_slots(self) -> Mapping[str, float]:
        """Returns the number of free slots by node."""

    def this_node(self) -> str:
        """Returns the name in the cluster of the node on which this process runs."""

    def awake_sandboxes(self) -> Sequence[str]:
        """Returns the names of all sandboxes' actors that exist now, of all tenants."""

    def find(self, name: str) -> Any | None:
        """Returns the handle of a named actor, or None if there is none."""

    def answers(self, asked: Mapping[Any, K], within_s: float) -> dict[K, Answer]:
        """Returns the outcomes of those calls that end in time, each by its reference's value in `asked`."""

    def answer(self, ref: Any, within_s: float | None = None) -> Any:
        """Returns the value of a call. Waits for ever without `within_s`.

        Raises:
            HoldfastError: the call's own error.
            ActorEndedError, ActorAwayError, NoAnswerInTimeError: there is no answer.
        """

    def has_started(self, handle: Any) -> bool:
        """Tells whether an actor has started and not ended."""

    def kill(self, handle: Any) -> None:
        """Kills an actor, which is not restarted."""

    def start_workers(self, node: ClusterNode, count: int, keep_alive_s: int) -> None:
        """Starts worker processes on a node, for actors to come.

        Raises:
            WorkersNotStartedError: not now.
            NotImplementedError: this release of Ray does not offer it.
        """
