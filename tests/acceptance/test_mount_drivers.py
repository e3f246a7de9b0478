"""`holdfast serve` where a mount driver is refused, or none is offered."""

from __future__ import annotations

import shutil
from pathlib import Path

from actors.models import RestoreMode
from tests.acceptance.http_box import HttpBox
from tests.support.service import nothing_left, refused, start

ON_AN_OVERLAY = (
    'mkdir -p "$0"/lower "$0"/upper "$0"/work "$0"/seen;'
    ' mount -t overlay -o "lowerdir=$0/lower,upperdir=$0/upper,workdir=$0/work" overlay "$0"/seen; exec "$@"'
)


def test_serve_refuses_a_driver_that_fails_its_trials_and_names_them(tmp_path: Path) -> None:
    said = refused(tmp_path / "home", tmp_path / "data", env={"HOLDFAST_DRIVER": "fuse"})
    assert "error: This machine cannot run sandboxes: driver fuse." in said.stderr
    assert "replaced_by_rename" in said.stderr
    assert "Set HOLDFAST_DRIVER to auto" in said.stderr


def test_a_service_whose_data_folder_is_on_an_overlay_restores_copies_and_says_so(tmp_path: Path) -> None:
    before = ("unshare", "--mount", "sh", "-c", ON_AN_OVERLAY, str(tmp_path))
    service = start(tmp_path / "home", tmp_path / "upper", before=before, seen_at=tmp_path / "seen")
    try:
        assert "warning: restores as copies only" in service.stdout.read_text()
        with service.client() as client:
            box = HttpBox(client, "box")
            box.write("/workspace/file", b"kept")
            handle = box.backup()
            box.write("/workspace/file", b"changed")
            assert box.restore(handle) == {**handle, "success": True, "mode": RestoreMode.COPY}
            assert box.read("/workspace/file") == b"kept"
            answer = client.post(f"{box.url}/restore", json={**handle, "mode": "overlay"})
            assert answer.json()["context"]["reason"] == "NO_MOUNT_DRIVER"
            assert '"copy"' in answer.json()["hint"]
    finally:
        service.stop()
        nothing_left(service)
        shutil.rmtree(service.ray_folder, ignore_errors=True)
