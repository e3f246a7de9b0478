"""The cluster behind `actors.rpc.runtime.Runtime`: Ray's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

import grpc
import ray
from ray._private.state import actors, available_resources_per_node, state
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.rpc.names import NAMESPACE, SANDBOX_PREFIX
from actors.rpc.ray_errors import unwrapped
from actors.rpc.runtime import (
    SLOTS,
    ActorAwayError,
    ActorEndedError,
    Answer,
    ClusterNode,
    NoAnswerInTimeError,
    WorkersNotStartedError,
)

_REQUEST_S = 5.0
K = TypeVar("K")


class RayRuntime:
    """The Ray cluster that this process has joined. `Runtime` describes the methods; they also raise RayError."""

    def nodes(self) -> Sequence[ClusterNode]:
        """See `Runtime`."""
        rows: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return [
            ClusterNode(
                row["NodeID"],
                row["Alive"],
                row["Resources"].get(SLOTS, 0.0),
                f"{row['NodeManagerAddress']}:{row['NodeManagerPort']}",
            )
            for row in rows
        ]

    def draining_nodes(self) -> Mapping[str, int]:
        """See `Runtime`."""
        return dict(state.get_draining_nodes())

    def free_slots(self) -> Mapping[str, float]:
        """See `Runtime`."""
        free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
        return {node_id: resources.get(SLOTS, 0.0) for node_id, resources in free.items()}

    def this_node(self) -> str:
        """See `Runtime`."""
        return ray.get_runtime_context().get_node_id()

    def awake_sandboxes(self) -> Sequence[str]:
        """See `Runtime`."""
        rows = ray.util.list_named_actors(all_namespaces=True)
        return [row["name"] for row in rows if row["namespace"] == NAMESPACE and row["name"].startswith(SANDBOX_PREFIX)]

    def find(self, name: str) -> Any | None:
        """See `Runtime`."""
        try:
            return ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None

    def answers(self, asked: Mapping[Any, K], within_s: float) -> dict[K, Answer]:
        """See `Runtime`."""
        if not asked:
            return {}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=within_s)
        return {asked[ref]: _answer(ref) for ref in ready}

    def answer(self, ref: Any, within_s: float | None = None) -> Any:
        """See `Runtime`."""
        try:
            return ray.get(ref, timeout=within_s)
        except RayTaskError as e:
            raise unwrapped(e) from None
        except ActorDiedError:
            raise ActorEndedError from None
        except RayActorError as e:
            raise ActorAwayError(type(e).__name__) from None
        except GetTimeoutError:
            raise NoAnswerInTimeError from None

    def has_started(self, handle: Any) -> bool:
        """See `Runtime`. An actor that waits for its process has not started."""
        return bool(actors(handle._actor_id.hex()).get("State") == "ALIVE")

    def kill(self, handle: Any) -> None:
        """See `Runtime`."""
        ray.kill(handle)

    def start_workers(self, node: ClusterNode, count: int, keep_alive_s: int) -> None:
        """See `Runtime`. The request is internal to Ray, and may change."""
        try:
            from ray._private.grpc_utils import init_grpc_channel

            common: Any = import_module("ray.core.generated.common_pb2")
            messages: Any = import_module("ray.core.generated.node_manager_pb2")
            services: Any = import_module("ray.core.generated.node_manager_pb2_grpc")
            request = messages.PrestartWorkersRequest(
                language=common.Language.PYTHON, num_workers=count, keep_alive_duration_secs=keep_alive_s
            )
            with init_grpc_channel(node.raylet) as channel:
                services.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_REQUEST_S)
        except grpc.RpcError as e:
            raise WorkersNotStartedError(type(e).__name__) from None
        except (ImportError, AttributeError, TypeError, ValueError) as e:
            raise NotImplementedError(type(e).__name__) from None


def on_node(node_id: str, *, soft: bool) -> NodeAffinitySchedulingStrategy:
    """The place of a new actor: that node, or with `soft` another one if that node cannot take it."""
    return NodeAffinitySchedulingStrategy(node_id, soft=soft)


def _answer(ref: Any) -> Answer:
    try:
        return Answer(ray.get(ref))
    except RayError as e:
        return Answer(error=type(e).__name__)
