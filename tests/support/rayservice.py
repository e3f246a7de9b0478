"""rayservice.yaml, and the cluster that it describes, run on this machine: a node of each group, on loopback."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from actors.node import mountinfo
from actors.node.cgroup import Cgroup
from actors.node.mounting import sweep
from tests.support.mount_leaks import wait_until
from tests.support.ports import free_port
from tests.support.sandboxes import service_cgroup
from tests.support.service import PROJECT, START_S, STOP_S, Service, clean_environment, nothing_left

TOKEN = "ray-token-of-tests-0123456789abcdef0123456789abcdef"
_DRIVER = PROJECT / "tests" / "acceptance" / "drivers" / "cluster_of_groups.py"


IN_A_USER_NAMESPACE = "rayservice-userns.yaml"


def objects(name: str = "rayservice.yaml") -> list[dict[str, Any]]:
    """All objects in the file."""
    return list(yaml.safe_load_all((PROJECT / name).read_text()))


def manifest(name: str = "rayservice.yaml") -> dict[str, Any]:
    """The RayService object."""
    (service,) = (described for described in objects(name) if described["kind"] == "RayService")
    return service


def serve_config(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that KubeRay passes to Ray Serve."""
    loaded: dict[str, Any] = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    return loaded


def groups(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The head group and the worker groups, by name."""
    cluster = manifest["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def container(group: Mapping[str, Any]) -> dict[str, Any]:
    """The only container of a group's pods."""
    (only,) = group["template"]["spec"]["containers"]
    return dict(only)


def plain_environment(group: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables whose values are in the file."""
    return {row["name"]: row["value"] for row in container(group).get("env", []) if "value" in row}


def resources(group: Mapping[str, Any]) -> dict[str, float]:
    """Resources of a node of the group. KubeRay puts the text unquoted into a shell command line in the pod."""
    (text,) = shlex.split(group["rayStartParams"].get("resources", "{}"))
    loaded: dict[str, float] = json.loads(text)
    return loaded


@dataclass(frozen=True, slots=True)
class Served:
    """The running cluster: its processes and gateway, its dashboard, and the folder of its logs."""

    service: Service
    dashboard: httpx.Client
    folder: Path
    ray: dict[str, str]
    """Environment for joining the cluster."""

    def status(self) -> dict[str, Any]:
        """Serve's status of its applications."""
        said: dict[str, Any] = self.dashboard.get("/api/serve/applications/").raise_for_status().json()
        return said

    def deploy(self, config: Mapping[str, Any]) -> bool:
        """Sends Serve its configuration. False if Serve could not be started in the dashboard's time; repeatable."""
        try:
            answer = self.dashboard.put("/api/serve/applications/", json=config)
        except httpx.TimeoutException:
            return False
        return answer.status_code < 500 and answer.raise_for_status().is_success

    def is_running(self) -> bool:
        """True if the application is running. Fails with the reason if its deployment has failed."""
        try:
            application = self.status()["applications"]["holdfast"]
        except httpx.HTTPError:  # the dashboard is busy
            return False
        assert application["status"] != "DEPLOY_FAILED", application
        return bool(application["status"] == "RUNNING")


@contextmanager
def serving(home: Path, data_dir: Path, *, keys: Mapping[str, str], api_key: str) -> Iterator[Served]:
    """The manifest's cluster, within the block. Afterwards nothing of it may be left.

    Args:
        home: home folder of all its processes.
        data_dir: the data folder of the sandboxes' node.
        keys: environment of the gateways in addition to the manifest's.
        api_key: a client's key, which is among `keys`.
    """
    home.mkdir()
    folder = Path(tempfile.mkdtemp(prefix="hf-serve-"))  # short, because Ray keeps sockets in it
    port = free_port()
    process = _start(home, folder, {**keys, "HOLDFAST_DATA_DIR": str(data_dir)})
    service = Service(
        process, home, data_dir, f"http://127.0.0.1:{port}", api_key, home / "cluster.out", home / "cluster.err"
    )
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        said = _said(service)
        with httpx.Client(base_url=said["dashboard"], headers=headers, timeout=START_S) as dashboard:
            served = Served(service, dashboard, folder, {**_ray(home), "HOLDFAST_RAY_ADDRESS": said["address"]})
            # All nodes have the same address here, so only the head's proxy listens.
            config = serve_config(manifest()) | {"proxy_location": "HeadOnly"}
            config["http_options"] |= {"host": "127.0.0.1", "port": port}
            assert wait_until(lambda: served.deploy(config), timeout_s=2 * START_S)
            assert wait_until(served.is_running, timeout_s=START_S), served.status()
            service.pids()
            yield served
            dashboard.delete("/api/serve/applications/").raise_for_status()
        assert mountinfo.mounts_under(data_dir) == []
    finally:
        service.pids()
        assert process.stdin is not None
        process.stdin.close()
        process.wait(STOP_S)
        Cgroup.remove_tree(service_cgroup(data_dir))
        sweep(data_dir)
        shutil.rmtree(folder, ignore_errors=True)
    nothing_left(service)


def _start(home: Path, folder: Path, keys: Mapping[str, str]) -> subprocess.Popen[bytes]:
    described = groups(manifest())
    (home / "ray_token").write_text(TOKEN)
    environment = {**_ray(home), "PYTHONPATH": str(PROJECT), **plain_environment(described["head"])}
    nodes = [
        {
            # At most one CPU, because Ray starts a worker ahead for each.
            "options": {"num_cpus": min(int(group["rayStartParams"]["num-cpus"]), 1), "resources": resources(group)},
            "environment": {**plain_environment(group), **(keys if name == "gateways" else {})},
        }
        for name, group in described.items()
    ]
    with (home / "cluster.out").open("wb") as out, (home / "cluster.err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, _DRIVER],
            cwd=home,
            env=clean_environment(home, environment),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
        )
    assert process.stdin is not None
    wanted = {
        "report": str(home / "cluster.json"),
        "folder": str(folder),
        "dashboard": free_port(),
        "groups": nodes,
    }
    process.stdin.write(json.dumps(wanted).encode() + b"\n")
    process.stdin.flush()
    return process


def _ray(home: Path) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "ray_token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def _said(service: Service) -> dict[str, str]:
    """The addresses of the cluster. Waits until it is up."""
    report = service.home / "cluster.json"

    def is_up() -> bool:
        assert service.process.poll() is None, service.stderr.read_text()
        return report.exists()

    assert wait_until(is_up, timeout_s=START_S), service.stderr.read_text()
    said: dict[str, str] = json.loads(report.read_text())
    return said
