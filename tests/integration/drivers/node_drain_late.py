"""Two drains while the bucket is away: it comes back in time for the first, and not for the second.

Arguments: path of the report, a folder, the bucket. Reports the content of each sandbox after the first drain. The node
of the second one dies at its deadline; reports what is named as lost, and which notices the first callers get.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from actors.client import get_sandbox
from gateway.app import create_app
from gateway.config import GatewayConfig
from storage.config import BucketConfig
from tests.support.ray_cluster import PATIENCE_S, World, drain, running, told
from tests.support.s3 import FaultProxy, fault_proxy
from tests.support.service import eventually

KEY = "a key for tests only"
OPERATIONS = ("part", "put", "get", "head", "complete", "create", "abort", "delete", "api")
DEADLINE_S = 8.0


def main(folder: Path, bucket: str) -> dict[str, object]:
    described = json.loads(bucket)
    keys = {name: SecretStr(described.pop(name)) for name in ("access_key_id", "secret_access_key")}
    with (
        fault_proxy(BucketConfig(**described, **keys)) as (proxy, proxied),
        running(folder, told(proxied), slots=[8], settings={}) as world,
    ):
        first = in_time(world, proxy)
        too_late(world, proxy)
        return {"first": first, **asyncio.run(told_to())}


def in_time(world: World, proxy: FaultProxy) -> dict[str, object]:
    """A drain with the bucket away at its beginning."""
    boxes = {name: get_sandbox(name) for name in ("awake", "asleep")}
    for box in boxes.values():
        box.write_file("/workspace/file", b"kept")
    put_to_sleep("asleep")
    world.nodes.add(slots=8)
    with away(proxy):
        drain(world.nodes.id(0), within_s=240)
        wait_for_refusals(proxy)
    eventually(lambda: not world.nodes.is_alive(0), timeout_s=PATIENCE_S)
    held = {name: box.read_file("/workspace/file").decode() for name, box in boxes.items()}
    places = [world.place(name) for name in boxes]
    return {"held": held, "places": places, "notices": [box.notice is None for box in boxes.values()]}


def too_late(world: World, proxy: FaultProxy) -> None:
    """A drain with the bucket away until its end."""
    saved = get_sandbox("saved")
    saved.write_file("/workspace/file", b"kept")
    saved.create_backup("/workspace")
    saved.write_file("/workspace/file", b"later")
    saved.exec(["sh", "-c", "echo lost > /tmp/file"])
    get_sandbox("unsaved").write_file("/workspace/file", b"lost")
    get_sandbox("untouched").list_files()
    put_to_sleep("unsaved")
    expected = {"saved": ["/tmp"], "unsaved": ["/workspace"], "untouched": []}
    eventually(lambda: {name: unsaved(world, name) for name in expected} == expected, timeout_s=PATIENCE_S)
    world.nodes.add(slots=8)
    with away(proxy):
        drain(world.nodes.id(1), within_s=DEADLINE_S)
        ends_at = time.monotonic() + DEADLINE_S
        wait_for_refusals(proxy)
        eventually(lambda: time.monotonic() > ends_at, timeout_s=PATIENCE_S)
        world.nodes.kill(1)
        eventually(lambda: not world.nodes.is_alive(1), timeout_s=PATIENCE_S)


def unsaved(world: World, name: str) -> list[str] | None:
    state = world.state(name)
    return state.unsaved if state is not None else None


class away:
    """A context in which the bucket refuses everything."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    def __enter__(self) -> None:
        for operation in OPERATIONS:
            self._proxy.script(operation, " ".join(["503"] * 20_000))

    def __exit__(self, *exc: object) -> None:
        self._proxy.clear()


def wait_for_refusals(proxy: FaultProxy) -> None:
    """Waits until a hand-over has tried to reach the bucket, which is away."""
    before = len(proxy.seen)
    eventually(lambda: sum(line.endswith("503") for line in proxy.seen[before:]) >= 10, timeout_s=PATIENCE_S)


def put_to_sleep(name: str) -> None:
    calls = get_sandbox(name).calls

    def asleep() -> bool:
        if (actor := calls.actor.find()) is not None and calls.awake().result():
            actor.leave.remote(0.0)
        return not calls.awake().result()

    eventually(asleep, timeout_s=PATIENCE_S)


async def told_to() -> dict[str, Any]:
    """Returns the notices that callers get: over REST for each call, and in Python."""
    app = create_app(GatewayConfig(keys_by_tenant={"default": SecretStr(KEY)}))
    transport = httpx.ASGITransport(app=app)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:

        async def call(name: str, method: str, path: str, **options: Any) -> list[Any]:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                answer = await client.request(method, f"/v1/sandbox/{name}{path}", timeout=PATIENCE_S, **options)
                if answer.status_code != 503 or time.monotonic() > deadline:
                    return [answer.status_code, answer.headers.get("Holdfast-Recovery")]
                await asyncio.sleep(0.1)

        async def until_told(name: str) -> bool:
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                if await call(name, "GET", "/files") == [200, None]:
                    return True
            return False

        execute = {"json": {"argv": ["cat", "/workspace/file"]}}
        calls = {
            "saved": [await call("saved", "POST", "/exec", **execute)],
            "unsaved": [
                await call("unsaved", "GET", "/file/workspace/file"),
                await call("unsaved", "GET", "/file/workspace/file"),
                await call("unsaved", "GET", "/files"),
            ],
            "untouched": [await call("untouched", "GET", "/files")],
        }
        ends = {name: await until_told(name) for name in ("saved", "unsaved")}
        infos = {name: (await client.get(f"/v1/sandbox/{name}")).json().get("recovery") for name in calls}
        events = (await client.get("/v1/sandbox/unsaved/events")).json()["events"]
    in_python = await asyncio.to_thread(python_caller)
    return {
        "calls": calls,
        "ends": ends,
        "lost": {name: [info["lost"], info["told"]] for name, info in infos.items()},
        "events": [[event["kind"], event.get("dir")] for event in events if event["kind"] == "lost"],
        "python": in_python,
    }


def python_caller() -> list[Any]:
    box = get_sandbox("awake")
    content = box.read_file("/workspace/file").decode()
    notice = box.notice
    return [content, notice.lost if notice else None, [row.dir for row in notice.directories] if notice else None]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main(Path(sys.argv[2]), sys.argv[3])))
