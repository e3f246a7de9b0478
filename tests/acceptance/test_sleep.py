"""Sandboxes whose process ends while nobody calls; they wake with everything in place at the next call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from storage import keys
from tests.acceptance.http_box import HttpBox
from tests.support.drivers import reported
from tests.support.mount_leaks import wait_until
from tests.support.service import Service, running

SCRIPT = Path(__file__).parent / "drivers" / "many_callers.py"
CALLS, CALLERS, SANDBOXES = 2000, 8, 3
SLEEP_AFTER_S = 0.05
LIMIT_S = 900


@pytest.fixture(scope="module")
def sleepy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("sleepy")
    env = {"HOLDFAST_SLEEP_AFTER_S": str(SLEEP_AFTER_S)}
    with running(folder / "home", folder / "data", env=env) as service:
        yield service


@pytest.fixture
def sleeper(sleepy: Service) -> Iterator[HttpBox]:
    with sleepy.client() as client, HttpBox(client, "sleeper").destroyed_at_the_end() as box:
        yield box


def is_awake(client: httpx.Client, box: HttpBox) -> bool:
    answer: bool = client.get(f"/v1/sandbox/{box.id}/running").json()["awake"]
    return answer


def test_a_sandbox_sleeps_and_wakes_with_its_files_and_its_writes_over_a_restore(sleeper: HttpBox) -> None:
    client = sleeper.client
    sleeper.write("/workspace/file", b"backed up")
    sleeper.write("/home/sandbox/file", b"plain")
    sleeper.restore(sleeper.backup())
    sleeper.write("/workspace/later", b"written over the restore")

    assert wait_until(lambda: not is_awake(client, sleeper), timeout_s=120)

    asleep = client.get(f"/v1/sandbox/{sleeper.id}").json()
    assert (asleep["running"], asleep["restored"][0]["dir"]) == (False, "/workspace")
    assert client.get(f"{sleeper.url}/running").json() == {"running": True, "awake": False}
    assert not is_awake(client, sleeper), "reading woke it"
    assert sleeper.read("/workspace/file") == b"backed up"
    assert sleeper.read("/workspace/later") == b"written over the restore"
    assert sleeper.read("/home/sandbox/file") == b"plain"


def test_a_sandbox_known_only_by_its_files_is_reported_as_running(sleepy: Service, sleeper: HttpBox) -> None:
    client = sleeper.client
    sleeper.write("/workspace/file", b"content")
    assert wait_until(lambda: not is_awake(client, sleeper), timeout_s=120)
    # An actor that dies before its first write to the bucket leaves this state.
    sleepy.store().delete(keys.state("default", sleeper.id))
    assert client.get(f"/v1/sandbox/{sleeper.id}").status_code == 404
    assert client.get(f"{sleeper.url}/running").json() == {"running": True, "awake": False}
    assert sleeper.read("/workspace/file") == b"content"
    assert client.delete(sleeper.url).status_code == 204
    assert client.get(f"{sleeper.url}/running").json() == {"running": False}


@pytest.mark.timeout(900)
def test_sleeps_and_wakes_are_counted(sleeper: HttpBox) -> None:
    def counts() -> tuple[float, float]:
        text = sleeper.client.get("/metrics").text
        samples = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"
        }
        return samples.get("holdfast_sleeps_total", 0), samples.get('holdfast_wakes_total{origin="here"}', 0)

    def asleep() -> bool:
        found = re.search(r"^holdfast_sandboxes_asleep (\S+)$", sleeper.client.get("/metrics").text, re.MULTILINE)
        return found is not None and float(found[1]) >= 1

    sleeps, wakes = counts()
    sleeper.write("/workspace/file", b"content")
    assert wait_until(lambda: counts()[0] > sleeps, timeout_s=60)
    assert wait_until(asleep, timeout_s=600)  # the pause between two counts is a hundred times as long as a count
    sleeper.read("/workspace/file")
    assert wait_until(lambda: counts()[1] > wakes, timeout_s=60)


def test_a_running_command_keeps_its_sandbox_awake(sleeper: HttpBox) -> None:
    awake = 'for i in $(seq 20); do sleep 0.1; done; echo "$$ still here"'
    assert "still here" in sleeper.sh(awake)


@pytest.mark.timeout(LIMIT_S + 60)
def test_calls_that_meet_a_sandbox_falling_asleep_are_served_once_each(
    sleepy: Service, record_property: Callable[[str, object], None]
) -> None:
    said = reported(SCRIPT, CALLS, CALLERS, SANDBOXES, home=sleepy.home, env=sleepy.client_env, timeout_s=LIMIT_S)
    for name in ("actors", "median_s", "longest_s"):
        record_property(name, said[name])
    assert (said["failed"], said["missing"], said["twice"]) == ([], [], 0)
    assert said["actors"] > 2 * SANDBOXES, "hardly any sandbox slept"
