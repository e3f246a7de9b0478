"""Two services on one machine whose data folders have the same path, each in its own mount namespace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.http_box import HttpBox
from tests.support.service import Service, running


@contextmanager
def service_at(seen_at: Path, folder: Path) -> Iterator[Service]:
    """A service that sees `folder` at the path `seen_at`."""
    folder.mkdir(parents=True)
    mount = f'mount --bind {folder} {seen_at}; exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", mount, "sh")
    with running(folder.parent / "home", folder, before=before, seen_at=seen_at) as service:
        yield service


def test_a_second_service_with_the_same_path_leaves_the_first_undisturbed(tmp_path: Path) -> None:
    seen_at = tmp_path / "seen"
    seen_at.mkdir()
    with service_at(seen_at, tmp_path / "a" / "data") as first, first.client() as client:
        box = HttpBox(client, "box")
        command = box.start("sh", "-c", "echo started; until [ -e go ]; do sleep 0.1; done; cat go")
        command.said(b"started")
        assert box.info()["limits"] == {"memory_bytes": 4 * 2**30, "processes": 1024}
        with service_at(seen_at, tmp_path / "b" / "data") as second, second.client() as other_client:
            other = HttpBox(other_client, "box")
            assert other.sh("ls -A; echo here > file; cat file") == "here\n"
            other.restore(other.backup())
            assert first.cgroup != second.cgroup
        box.write("/workspace/go", b"undisturbed")
        ended = command.result()
        assert (ended.exit_code, ended.text) == (0, "started\nundisturbed")
