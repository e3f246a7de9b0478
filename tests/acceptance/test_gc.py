"""The collections that a service runs by itself."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.http_box import HttpBox
from tests.support.mount_leaks import wait_until
from tests.support.service import running


def test_the_service_collects_its_bucket_by_itself_and_says_when(tmp_path: Path) -> None:
    with (
        running(tmp_path / "home", tmp_path / "data", env={"HOLDFAST_GC_EVERY_S": "0.5"}) as service,
        service.client() as client,
    ):
        box = HttpBox(client, "box")
        made = [box.backup()["id"] for _ in range(2)]
        client.put(f"{box.url}/retention", json={"keep_last": 1}).raise_for_status()

        def listed() -> list[str]:
            return [row["id"] for row in client.get(f"{box.url}/backups").json()["backups"]]

        assert wait_until(lambda: listed() == made[1:], timeout_s=120), listed()
        assert wait_until(lambda: 'holdfast_gc_runs_total{outcome="ok"}' in client.get("/metrics").text, timeout_s=120)
        assert "holdfast_gc_last_success_timestamp_seconds" in client.get("/metrics").text
