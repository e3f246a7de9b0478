"""Tests of rayservice.yaml that need no Kubernetes cluster. The acceptance tests run what it describes."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

import pytest
from ray._common.utils import import_attr
from ray._private import ray_constants
from ray.serve.schema import ServeDeploySchema

from actors.rpc.runtime import SLOTS
from actors.settings import SECRET_SETTINGS, Settings
from docs.generator.settings import variables
from gateway.embedded.ray_head import PRELOADED
from gateway.serve_app import application
from tests.support import rayservice
from tests.support.container import FEWEST
from tests.unit.project.test_cluster_yaml import ROOT

FAST_CHECKS = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


@pytest.fixture
def manifest() -> dict[str, Any]:
    return rayservice.manifest()


@pytest.fixture
def groups(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return rayservice.groups(manifest)


@pytest.fixture
def deployment(manifest: dict[str, Any]) -> dict[str, Any]:
    (served,) = rayservice.serve_config(manifest)["applications"]
    (only,) = served["deployments"]
    return dict(only)


def environment(group: dict[str, Any]) -> list[dict[str, Any]]:
    return list(rayservice.container(group)["env"])


def test_the_serve_config_satisfies_serves_schema_and_names_our_builder(manifest: dict[str, Any]) -> None:
    config = ServeDeploySchema.model_validate(rayservice.serve_config(manifest))
    (served,) = config.applications
    assert import_attr(served.import_path) is application
    assert served.args == {} and served.runtime_env == {}


def test_the_config_changes_the_deployment_that_the_builder_makes(deployment: dict[str, Any]) -> None:
    assert deployment["name"] == application({})._bound_deployment.name
    assert deployment["num_replicas"] == 2


def test_the_replicas_fit_on_the_group_that_has_the_keys(
    deployment: dict[str, Any], groups: dict[str, dict[str, Any]]
) -> None:
    ((name, each),) = deployment["ray_actor_options"]["resources"].items()
    offering = {group: rayservice.resources(groups[group]).get(name, 0) for group in groups}
    assert offering.pop("gateways") * groups["gateways"]["minReplicas"] >= deployment["num_replicas"] * each
    assert set(offering.values()) == {0}


def test_only_the_sandboxes_group_takes_sandboxes_and_is_privileged(groups: dict[str, dict[str, Any]]) -> None:
    assert {name for name, group in groups.items() if rayservice.resources(group).get(SLOTS)} == {"sandboxes"}
    contexts = {name: rayservice.container(group)["securityContext"] for name, group in groups.items()}
    assert contexts.pop("sandboxes") == {"privileged": True}
    assert all(context["capabilities"] == {"drop": ["ALL"]} for context in contexts.values())


def test_neither_the_head_nor_a_gateway_runs_tasks(groups: dict[str, dict[str, Any]]) -> None:
    assert {name: group["rayStartParams"]["num-cpus"] for name, group in groups.items()} == {
        "head": "0",
        "gateways": "0",
        "sandboxes": "8",
    }


def test_every_variable_is_a_setting_of_ours_or_of_ray(groups: dict[str, dict[str, Any]]) -> None:
    names = {row["name"] for group in groups.values() for row in environment(group)}
    assert {name for name in names if not name.startswith("RAY_")} <= set(variables().values())


def test_the_gateways_have_every_required_setting(groups: dict[str, dict[str, Any]]) -> None:
    rows = {row["name"] for row in environment(groups["gateways"])}
    required = {"SANDBOX_API_KEY", *Settings().missing_bucket_settings()}
    assert {name.partition(" ")[0] for name in required} <= rows


def test_every_secret_comes_from_the_kubernetes_secret_and_reaches_only_the_gateways(
    groups: dict[str, dict[str, Any]],
) -> None:
    for name, group in groups.items():
        secret = [row for row in environment(group) if row["name"] in SECRET_SETTINGS]
        assert {row["name"] for row in secret} == (set(SECRET_SETTINGS) if name == "gateways" else set())
        for row in secret:
            assert row.keys() == {"name", "valueFrom"}
            assert row["valueFrom"]["secretKeyRef"]["name"] == "holdfast"
            assert row["valueFrom"]["secretKeyRef"]["key"] == row["name"]


def test_rays_authentication_is_on_and_the_version_is_the_installed_one(manifest: dict[str, Any]) -> None:
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == importlib.metadata.version("ray")


def test_an_upgrade_starts_no_second_cluster(manifest: dict[str, Any]) -> None:
    assert manifest["spec"]["upgradeStrategy"] == {"type": "None"}


def test_a_lost_node_is_detected_early_here_and_in_the_cluster_file(groups: dict[str, dict[str, Any]]) -> None:
    assert rayservice.plain_environment(groups["head"]).items() >= FAST_CHECKS.items()
    cluster_yaml = (ROOT / "cluster.yaml").read_text()
    assert all(f"{name}={value}" in cluster_yaml for name, value in FAST_CHECKS.items())


def test_the_sandboxes_workers_preload_the_same_modules_as_a_single_machine(groups: dict[str, dict[str, Any]]) -> None:
    preloaded = rayservice.plain_environment(groups["sandboxes"])["RAY_preload_python_modules"]
    assert preloaded == ",".join(PRELOADED)


def test_a_pod_has_minutes_to_hand_its_sandboxes_over_before_it_is_killed(
    groups: dict[str, dict[str, Any]],
) -> None:
    values: dict[str, Any] = {row["name"]: row.get("value") for row in environment(groups["sandboxes"])}
    drain_s = float(values["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert hasattr(ray_constants, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
    granted_s = groups["sandboxes"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert 300 <= drain_s <= granted_s - 30  # time for the processes to end after the drain


def test_a_gateways_pod_is_not_killed_while_its_requests_drain(groups: dict[str, dict[str, Any]]) -> None:
    granted_s = groups["gateways"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert granted_s >= ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S + 30


def test_the_data_folder_is_a_volume_of_the_node(groups: dict[str, dict[str, Any]]) -> None:
    data_dir = rayservice.plain_environment(groups["gateways"])["HOLDFAST_DATA_DIR"]
    pod = groups["sandboxes"]["template"]["spec"]
    mounts = {row["mountPath"]: row["name"] for row in rayservice.container(groups["sandboxes"])["volumeMounts"]}
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    assert volumes[mounts[data_dir]] == data_dir == str(Settings.model_fields["data_dir"].default)
    assert volumes[mounts["/dev"]] == "/dev"
    (apart,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["labelSelector"]["matchLabels"] == {"ray.io/group": "sandboxes"}


def test_the_gateways_pods_expose_the_port_that_serve_listens_on(
    manifest: dict[str, Any], groups: dict[str, dict[str, Any]]
) -> None:
    http = rayservice.serve_config(manifest)["http_options"]
    ports = {row["name"]: row["containerPort"] for row in rayservice.container(groups["gateways"])["ports"]}
    assert (ports["serve"], http["host"]) == (http["port"], "0.0.0.0")


def test_all_nodes_run_the_image_of_the_dockerfile(groups: dict[str, dict[str, Any]]) -> None:
    version = importlib.metadata.version("holdfast")
    assert {rayservice.container(group)["image"] for group in groups.values()} == {f"holdfast:{version}"}
    dockerfile = (ROOT / "Dockerfile").read_text()
    (folder,) = set(re.findall(r"^WORKDIR (.+)$", dockerfile, re.MULTILINE))
    assert f"ENV PATH={folder}/.venv/bin:$PATH" in dockerfile
    assert "scripts/install-python-packages .venv requirements.lock" in dockerfile and "wget" in dockerfile


def sandboxes_pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(rayservice.groups(manifest)["sandboxes"]["template"]["spec"])


def test_the_namespace_admits_privileged_pods_and_holds_everything(manifest: dict[str, Any]) -> None:
    described = rayservice.objects()
    (namespace,) = (found for found in described if found["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    own = [found for found in described if found["kind"] not in ("Namespace", "PriorityClass")]
    assert {found["metadata"]["namespace"] for found in own} == {namespace["metadata"]["name"]}
    assert described[0] is namespace, "kubectl makes them in the order of the file"


def test_a_disruption_never_takes_all_pods_of_a_kind(groups: dict[str, dict[str, Any]]) -> None:
    budgets = [found["spec"] for found in rayservice.objects() if found["kind"] == "PodDisruptionBudget"]
    selected = {next(iter(budget["selector"]["matchLabels"].values())): budget["minAvailable"] for budget in budgets}
    assert selected.keys() == groups.keys()
    for name in ("gateways", "sandboxes"):
        assert 0 < selected[name] < groups[name]["replicas"], "or no node could ever be drained"


def test_sandboxes_have_nodes_of_their_own_one_pod_each(manifest: dict[str, Any]) -> None:
    pod = sandboxes_pod(manifest)
    ((key, value),) = pod["nodeSelector"].items()
    assert {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} in pod["tolerations"]
    (apart,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["namespaceSelector"] == {}, "the folder is the node's, whatever the pod's Kubernetes namespace"
    (priority,) = (found for found in rayservice.objects() if found["kind"] == "PriorityClass")
    assert pod["priorityClassName"] == priority["metadata"]["name"]


def test_no_autoscaler_removes_nodes_with_sleeping_sandboxes(
    manifest: dict[str, Any], groups: dict[str, dict[str, Any]]
) -> None:
    assert manifest["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is False
    assert groups["sandboxes"]["idleTimeoutSeconds"] >= 24 * 3600


def test_every_pod_has_an_init_process_and_pulls_its_image(groups: dict[str, dict[str, Any]]) -> None:
    for group in groups.values():
        assert group["template"]["spec"]["shareProcessNamespace"] is True
        assert rayservice.container(group)["imagePullPolicy"] == "Always"


def test_only_the_gateways_port_is_reachable_and_no_pod_reaches_the_clouds_metadata(manifest: dict[str, Any]) -> None:
    policies = {
        found["metadata"]["name"]: found["spec"] for found in rayservice.objects() if found["kind"] == "NetworkPolicy"
    }
    gateways = policies.pop("holdfast-gateways")
    port = rayservice.serve_config(manifest)["http_options"]["port"]
    assert gateways["ingress"] == [{"ports": [{"port": port}]}]
    (others,) = policies.values()
    assert all("from" in rule for rule in others["ingress"])
    blocks = [to["ipBlock"] for rule in others["egress"] for to in rule["to"]]
    assert "169.254.169.254/32" in blocks[0]["except"]


def test_the_user_namespace_variant_differs_in_nothing_else() -> None:
    first, second = rayservice.objects(), rayservice.objects(rayservice.IN_A_USER_NAMESPACE)
    pod = sandboxes_pod(rayservice.manifest(rayservice.IN_A_USER_NAMESPACE))
    (container,) = pod["containers"]
    context = container["securityContext"]

    assert pod["hostUsers"] is False
    assert "privileged" not in context
    assert context["procMount"] == "Unmasked"
    assert context["capabilities"] == {"drop": ["ALL"], "add": list(FEWEST)}
    assert context["seccompProfile"] == context["appArmorProfile"] == {"type": "Unconfined"}
    assert container["resources"]["limits"]["squat.ai/fuse"] == 1
    group = sandboxes_group(rayservice.manifest(rayservice.IN_A_USER_NAMESPACE))
    annotations = group["template"]["metadata"]["annotations"]
    assert annotations == {"io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw": "true"}
    assert [volume["name"] for volume in pod["volumes"]] == ["data"]

    for described in (first, second):
        for changed in described:
            if changed["kind"] == "RayService":
                template = sandboxes_group(changed)["template"]
                template.pop("metadata", None)
                spec = template["spec"]
                (box,) = spec["containers"]
                for where, names in (
                    (spec, ("hostUsers", "volumes")),
                    (box, ("securityContext", "volumeMounts")),
                ):
                    for name in names:
                        where.pop(name, None)
                box["resources"]["limits"].pop("squat.ai/fuse", None)
    assert first == second


def sandboxes_group(service: dict[str, Any]) -> dict[str, Any]:
    (found,) = (g for g in service["spec"]["rayClusterConfig"]["workerGroupSpecs"] if g["groupName"] == "sandboxes")
    return dict(found)
