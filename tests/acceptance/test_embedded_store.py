"""The embedded store as its operator sees it: its folder, and its restart after its process has ended."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.acceptance.http_box import HttpBox
from tests.support.ports import free_port
from tests.support.service import Service, comm_of, eventually, finished_lines, is_ready, running


def store_pids(service: Service) -> set[int]:
    return {pid for pid in service.pids() if comm_of(pid) == "rclone"}


def events(service: Service) -> list[str]:
    return [json.loads(line)["event"] for line in finished_lines(service.stderr) if line.startswith("{")]


def test_the_store_is_in_the_configured_folder_and_restarts_there_when_killed(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path / "home", tmp_path / "data", env={"HOLDFAST_STORE_PORT": str(port)}) as service:
        file = service.data_dir / "secrets" / "store.env"
        banner = service.stdout.read_text()
        assert f"the store speaks S3 at http://127.0.0.1:{port}, bucket holdfast; its keys: {file}\n" in banner
        assert file.stat().st_mode & 0o077 == 0
        with service.client() as client:
            box = HttpBox(client, "box")
            box.sh("echo kept > file")
            handle = box.backup("/workspace")
            for times in (1, 2):
                (killed,) = store_pids(service)
                os.kill(killed, signal.SIGKILL)
                eventually(lambda times=times: events(service).count("embedded_store_restarted") == times)  # type: ignore[misc]
                eventually(lambda: is_ready(service))
                assert store_pids(service) and killed not in store_pids(service)
                box.restore(handle)
                assert box.sh("cat file") == "kept\n"
                assert box.backup("/workspace")["id"] != handle["id"]
        listening = eventually(lambda: {at for pid, at in service.listening() if comm_of(pid) == "rclone"})
        assert listening == {("127.0.0.1", port)}
        assert events(service).count("embedded_store_ended") == 2
    assert not file.exists()
