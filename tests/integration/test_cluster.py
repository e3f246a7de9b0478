"""Sandboxes on several nodes: placement, and recovery when a node dies. Real Ray, on one machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.config import BucketConfig
from tests.support.drivers import reported
from tests.support.ray_cluster import ENVIRONMENT, clean, told
from tests.support.s3 import embedded_s3, moto_s3

DRIVERS = Path(__file__).parent / "drivers"
LIMIT_S = 900


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder with the nodes' data folders."""
    made = tmp_path / "nodes"
    made.mkdir()
    yield made
    clean(made)


def run(name: str, folder: Path, bucket: BucketConfig) -> Any:
    return reported(
        DRIVERS / f"{name}.py", folder, told(bucket), home=folder.parent, env=ENVIRONMENT, timeout_s=LIMIT_S
    )


@pytest.mark.timeout(LIMIT_S + 60)
def test_sandboxes_spread_wake_at_their_files_and_fork_at_their_archive(folder: Path, tmp_path: Path) -> None:
    with embedded_s3(tmp_path / "s3") as server:
        said = run("placement", folder, server.config)
    before, *after = said["rounds"]
    assert sorted(Counter(before).values()) == [2, 2]
    assert after == [before, before]
    assert said["forks"] == [[0, 0], [1, 1]]
    assert said["refused"] == {"outcome": "not_executed", "reason": "FULL"}


@pytest.mark.timeout(LIMIT_S + 60)
def test_sandboxes_of_a_dead_node_are_recovered_elsewhere_from_their_last_backups(
    folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with embedded_s3(tmp_path / "s3") as server:
        said = run("node_loss", folder, server.config)
    record_property("took_s", [*said["took_s"], said["uncalled_s"]])
    print(f"answered after the node's death: {sorted(round(took, 1) for took in said['took_s'])} s; {said['ended']}")
    print(f"came back without a call: {said['uncalled_s']:.1f} s after it")
    expected, found = said["uncalled"]
    assert found == expected
    assert said["before"] == {"0": 10}
    assert said["after"].keys() <= {"1", "2"}
    assert sum(said["after"].values()) == 10
    for name, (workspace, nested) in said["backups"].items():
        assert said["recovered"][name] == {"/workspace": [workspace, None], "/app/nested": [nested, None]}
    assert said["ended"].keys() <= {"ok", "SANDBOX_UNAVAILABLE unknown", "SANDBOX_UNAVAILABLE not_executed"}


@pytest.mark.timeout(LIMIT_S + 60)
def test_a_drain_under_load_loses_no_data(folder: Path, tmp_path: Path) -> None:
    with embedded_s3(tmp_path / "s3") as server:
        said = run("node_drain", folder, server.config)
    print(f"empty after {said['empty_s']:.1f} s; the load: {said['ended']}")
    assert said["before"] == {"0": 10}
    assert said["after"].keys() <= {"1", "2"} and sum(said["after"].values()) == 10
    since = {name: f"{name} since" if name.endswith("-0") else name for name in said["held"]}
    assert said["held"] == said["again"] == {name: [text, "inner"] for name, text in since.items()}
    assert set(said["commands"].values()) == {"SANDBOX_UNAVAILABLE unknown DRAINING True"}
    assert all(said["lines"].values())
    assert said["ended"].keys() == {"ok"}
    assert said["left"] == [] and said["recovered"] == []


@pytest.mark.timeout(LIMIT_S + 60)
def test_a_drain_waits_for_the_bucket_and_names_the_losses_if_it_stays_away(folder: Path, tmp_path: Path) -> None:
    with embedded_s3(tmp_path / "s3") as server:
        said = run("node_drain_late", folder, server.config)
    assert said["first"] == {
        "held": {"awake": "kept", "asleep": "kept"},
        "places": [1, 1],
        "notices": [True, True],
    }
    assert said["calls"] == {
        "saved": [[200, "lost"]],
        "unsaved": [[404, "lost"], [404, "lost"], [200, "lost"]],
        "untouched": [[200, None]],
    }
    assert said["ends"] == {"saved": True, "unsaved": True}
    assert said["lost"] == {"saved": [["/tmp"], True], "unsaved": [["/workspace"], True], "untouched": [[], True]}
    assert said["events"] == [["lost", "/workspace"]]
    assert said["python"] == ["kept", [], ["/workspace"]]


@pytest.mark.timeout(LIMIT_S + 60)
def test_an_actor_on_a_node_that_was_cut_off_commits_nothing(folder: Path) -> None:
    with moto_s3(bucket="split-brain") as config:  # its own bucket, since all moto servers here share their buckets
        said = run("split_brain", folder, config)
    assert said["content"] == "backed up"
    assert said["places"] == [1, 1]
    old, new, after = said["epochs"]
    assert old < new == after
    assert said["committed"] == said["expected"]
    assert said["archives"] == said["expected"]
    assert said["uploads"] == []
    assert not said["outcome"].startswith("made")
