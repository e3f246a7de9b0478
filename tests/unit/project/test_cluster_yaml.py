"""Tests of cluster.yaml, the configuration of `ray up`."""

from __future__ import annotations

import configparser
import re
import subprocess
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


def test_the_cluster_file_satisfies_rays_schema(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_an_unknown_key_is_refused_so_the_schema_is_applied(config: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="surprise"):
        validate_config(prepare_config({**config, "surprise": 1}))


def test_the_variant_for_ones_own_machines_satisfies_rays_schema(config: dict[str, Any]) -> None:
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
    assert "make -C /opt/holdfast install" in " ".join(config["setup_commands"])
    assert "\ninstall:" in makefile
    (unit,) = re.findall(r"/opt/holdfast/(\S+\.service)", " ".join(config["head_setup_commands"]))
    assert (ROOT / unit).is_file()


def test_ray_copies_the_project_to_a_folder_that_its_user_may_write(config: dict[str, Any]) -> None:
    ((target, source),) = config["file_mounts"].items()
    assert target.startswith("~/") and source == "."
    (copy,) = (command for command in config["setup_commands"] if "rsync --" in command)
    assert copy.startswith("sudo ") and f" {target}/ /opt/holdfast/" in copy


def test_files_deleted_here_are_deleted_on_the_nodes(config: dict[str, Any], tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for file in (here / "kept", there / "gone", there / ".venv" / "kept", there / "holdfast.egg-info" / "kept"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (copy,) = (command for command in config["setup_commands"] if "rsync --" in command)
    copy = copy.removeprefix("sudo ").replace("~/holdfast/", f"{here}/").replace("/opt/holdfast/", f"{there}/")

    subprocess.run(["sh", "-ec", copy.replace("--chown=root:root", "")], check=True)

    left = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert left == {"kept", ".venv/kept", "holdfast.egg-info/kept"}


def test_a_node_without_the_token_stops_before_ray_starts(config: dict[str, Any], tmp_path: Path) -> None:
    (check,) = (command for command in config["setup_commands"] if "ray_token" in command)
    check = check.removeprefix("sudo ").replace("/etc/holdfast/ray_token", str(tmp_path / "ray_token"))

    without = subprocess.run(["sh", "-c", check], capture_output=True, text=True, check=False)
    (tmp_path / "ray_token").write_text("token")

    assert without.returncode == 1 and "ray_token on this node" in without.stderr
    assert subprocess.run(["sh", "-c", check], check=False).returncode == 0


def test_a_second_ray_up_restarts_the_gateway_instead_of_starting_another(config: dict[str, Any]) -> None:
    commands = config["head_start_ray_commands"]
    assert commands[0] == "sudo systemctl stop holdfast-gateway"
    assert commands[-1].startswith("sudo systemctl start holdfast-gateway")
    assert not any("nohup" in command for command in commands)
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(ROOT / "scripts" / "holdfast-gateway.service")
    assert unit["Service"]["ExecStart"].startswith("/opt/holdfast/.venv/bin/holdfast serve --address auto ")
    assert unit["Service"]["EnvironmentFile"] == "/etc/holdfast/env"


def test_no_node_is_open_to_the_world(config: dict[str, Any]) -> None:
    assert config["provider"]["use_internal_ips"] is True
    for node in config["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"], "Ray's own group lets everybody try SSH"


def test_the_head_offers_no_room_for_sandboxes_and_the_workers_do(config: dict[str, Any]) -> None:
    nodes = config["available_node_types"]
    assert nodes[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert nodes["sandboxes"]["resources"]["sandbox_slots"] > 0


def test_ray_starts_with_authentication_and_the_dashboard_on_loopback(config: dict[str, Any]) -> None:
    starts = [
        command
        for name in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[name]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_a_worker_preloads_the_same_modules_as_a_single_machine(config: dict[str, Any]) -> None:
    (start,) = (command for command in config["worker_start_ray_commands"] if "ray start" in command)
    assert f" RAY_preload_python_modules={','.join(PRELOADED)} " in start


def test_no_node_is_removed_within_a_day_of_being_idle(config: dict[str, Any]) -> None:
    assert config["idle_timeout_minutes"] >= 24 * 60


def test_a_worker_starts_with_the_slots_that_the_autoscaler_expects(config: dict[str, Any]) -> None:
    slots = config["available_node_types"]["sandboxes"]["resources"]["sandbox_slots"]
    (start,) = (command for command in config["worker_start_ray_commands"] if "ray start" in command)
    assert f"--resources='{{\"sandbox_slots\": {slots}}}'" in start
