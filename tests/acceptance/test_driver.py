"""The main flow through `actors.client`, from a process that has joined the cluster and has no key of the bucket."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.http_box import HttpBox
from tests.support.drivers import reported
from tests.support.service import Service

SCRIPT = Path(__file__).parent / "drivers" / "main_flow.py"


def test_another_driver_backs_up_restores_and_catches_typed_errors(service: Service, box: HttpBox) -> None:
    said = reported(SCRIPT, box.id, home=service.home, env=service.client_env, timeout_s=300)
    backup_id = said.pop("id")
    assert said == {
        "not found": "BackupNotFoundError",
        "expired": "BackupExpiredError",
        "bad dir": "InvalidBackupConfigError",
        "bad ttl": "InvalidBackupConfigError",
        "bad handle": "InvalidBackupConfigError",
        "missing dir": "InvalidBackupConfigError",
        "missing file": "FileNotFoundInSandboxError",
        "bad name": "InvalidRequestError",
        "environment": [],
    }
    assert box.read("/workspace/src/file") == b"kept\n"
    assert box.client.get(f"/v1/backup/{backup_id}").json()["name"] == "before upgrade"
