"""A cluster by script: a fake of `actors.rpc.runtime.Runtime`, with handles that record their calls."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from actors.rpc.runtime import Answer, ClusterNode

K = TypeVar("K")


class Ref:
    """A reference to a call's outcome, which is settled by a value or an error."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome


SILENT = object()
"""The outcome of a call that is not answered."""


@dataclass(eq=False)
class Handle:
    """An actor's handle. `says` gives the outcomes of each method's calls in order; the last one stays."""

    says: dict[str, list[Any]] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    """Each call: the method's name, and its arguments."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Method(self, name)


@dataclass(frozen=True)
class _Method:
    handle: Handle
    name: str

    def remote(self, *args: Any) -> Ref:
        self.handle.calls.append((self.name, *args))
        outcomes = self.handle.says.get(self.name, [None])
        return Ref(outcomes.pop(0) if len(outcomes) > 1 else outcomes[0])


class Clock:
    """A clock that only sleeping moves. Each sleep first runs the next of `events`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.events: deque[Callable[[], None]] = deque()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.events:
            self.events.popleft()()


@dataclass
class ScriptedRuntime:
    """The cluster: its nodes, and its named actors. Tests change the fields as they go."""

    known: list[ClusterNode] = field(default_factory=list)
    draining: dict[str, int] = field(default_factory=dict)
    free: dict[str, float] = field(default_factory=dict)
    named: dict[str, Any] = field(default_factory=dict)
    here: str = "head"
    started: list[tuple[str, int]] = field(default_factory=list)
    """The workers that were started: the node, and their number."""
    start_error: Exception | None = None
    living: set[int] = field(default_factory=set)
    """The identities (`id`) of handles whose actors have started."""
    killed: list[Any] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """The number of questions of each kind."""

    def add(self, node_id: str, *, slots: float = 4.0, free: float | None = None) -> None:
        """Adds a living node."""
        self.known.append(ClusterNode(node_id, True, slots, f"{node_id}:1"))
        self.free[node_id] = slots if free is None else free

    def remove(self, node_id: str) -> None:
        """Lets a node die."""
        self.known = [ClusterNode(n.id, n.is_alive and n.id != node_id, n.slots, n.raylet) for n in self.known]
        self.free.pop(node_id, None)

    def nodes(self) -> Sequence[ClusterNode]:
        self.asked["nodes"] += 1
        return list(self.known)

    def draining_nodes(self) -> Mapping[str, int]:
        return dict(self.draining)

    def free_slots(self) -> Mapping[str, float]:
        return dict(self.free)

    def this_node(self) -> str:
        return self.here

    def awake_sandboxes(self) -> Sequence[str]:
        return [name for name in self.named if name.startswith("sandbox:")]

    def find(self, name: str) -> Any | None:
        return self.named.get(name)

    def answers(self, asked: Mapping[Any, K], within_s: float) -> dict[K, Answer]:
        said = {}
        for ref, key in asked.items():
            if isinstance(ref.outcome, Exception):
                said[key] = Answer(error=type(ref.outcome).__name__)
            elif ref.outcome is not SILENT:
                said[key] = Answer(ref.outcome)
        return said

    def answer(self, ref: Any, within_s: float | None = None) -> Any:
        if isinstance(ref.outcome, Exception):
            raise ref.outcome
        return ref.outcome

    def has_started(self, handle: Any) -> bool:
        return id(handle) in self.living

    def kill(self, handle: Any) -> None:
        self.killed.append(handle)

    def start_workers(self, node: ClusterNode, count: int, keep_alive_s: int) -> None:
        if self.start_error is not None:
            raise self.start_error
        self.started.append((node.id, count))
