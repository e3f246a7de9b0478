"""cluster.yaml as `ray up` reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from gateway.embedded.ray_head import PRELOADED

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def test_the_cluster_file_satisfies_rays_own_schema(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_an_unknown_key_is_refused_so_the_schema_is_really_applied(config: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="surprise"):
        validate_config(prepare_config({**config, "surprise": 1}))


def test_the_variant_for_ones_own_machines_satisfies_it_too(config: dict[str, Any]) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    (commented,) = re.findall(r"^#   provider:\n(?:#  .*\n)+", text, re.MULTILINE)
    described = yaml.safe_load(commented.replace("\n#   ", "\n").removeprefix("#   "))
    for name in ("available_node_types", "head_node_type"):
        config.pop(name)

    prepared = prepare_config({**config, **described})
    validate_config(prepared)

    (nodes,) = prepared["available_node_types"].values()
    assert nodes["max_workers"] == len(described["provider"]["worker_ips"]) == 2


def test_every_command_of_the_project_that_the_file_names_exists(config: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "make -C /opt/holdfast setup" in " ".join(config["setup_commands"])
    assert "\nsetup:" in makefile
    assert config["file_mounts"] == {"/opt/holdfast": "."}


def test_the_head_offers_no_room_for_sandboxes_and_the_workers_do(config: dict[str, Any]) -> None:
    nodes = config["available_node_types"]
    assert nodes[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert nodes["sandboxes"]["resources"]["sandbox_slots"] > 0


def test_ray_is_started_with_its_authentication_on_and_the_dashboard_on_loopback(config: dict[str, Any]) -> None:
    starts = [
        command
        for name in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[name]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_a_workers_processes_import_what_those_of_one_machine_do(config: dict[str, Any]) -> None:
    (start,) = (command for command in config["worker_start_ray_commands"] if "ray start" in command)
    assert f" RAY_preload_python_modules={','.join(PRELOADED)} " in start


def test_no_node_ends_within_a_day_because_its_sandboxes_sleep(config: dict[str, Any]) -> None:
    assert config["idle_timeout_minutes"] >= 24 * 60


def test_the_slots_that_a_worker_starts_with_are_those_that_the_autoscaler_counts_on(config: dict[str, Any]) -> None:
    slots = config["available_node_types"]["sandboxes"]["resources"]["sandbox_slots"]
    (start,) = (command for command in config["worker_start_ray_commands"] if "ray start" in command)
    assert f"--resources='{{\"sandbox_slots\": {slots}}}'" in start
