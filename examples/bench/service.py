"""The running Holdfast service, as the benchmark uses it: over HTTP, beside its own S3 server."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config
from demo import MANIFEST, execute, start, tar_of

from actors.node import mountinfo, mounting
from bench.workloads import CHANGE

BUCKET = "holdfast"
Backup = dict[str, Any]
"""The handle of a backup."""


class Holdfast:
    """A client of the service. `data_dir` is the service's folder on this machine."""

    def __init__(self, api: httpx.Client, data_dir: Path) -> None:
        self.api = api
        self.data_dir = data_dir
        self._made = set[str]()

    def new_name(self) -> str:
        """A name that no sandbox has had."""
        return f"b-{uuid.uuid4().hex[:12]}"

    def with_files(self, folder: Path) -> str:
        """Makes a sandbox whose /workspace holds a copy of the directory; returns its name."""
        box = self.new_name()
        if any(folder.iterdir()):
            self.api.post(f"/v1/sandbox/{box}/hydrate", content=tar_of(folder))
        else:
            execute(self.api, box, "true")
        return box

    def execute(self, box: str, script: str) -> str:
        """Runs a shell script in /workspace; returns its output."""
        return execute(self.api, box, script)

    def change(self, box: str) -> None:
        """Changes 1 MB in /workspace and deletes a file."""
        self.execute(box, CHANGE)

    def manifest(self, box: str) -> str:
        """The digest of all files of /workspace, and their number."""
        return self.execute(box, MANIFEST)

    def back_up(self, box: str, *, full: bool = False) -> Backup:
        """Backs /workspace up: in full if `full` is true, else incrementally where that is possible."""
        made = self._post(f"/v1/sandbox/{box}/backup", {"dir": "/workspace", "full": full})
        self._made.add(made["id"])
        return made

    def info(self, backup: Backup) -> dict[str, Any]:
        """The description of a backup."""
        answer: dict[str, Any] = self.api.get(f"/v1/backup/{backup['id']}").json()
        return answer

    def delete_all_but(self, *kept: Backup) -> None:
        """Deletes all backups but these."""
        for backup_id in self._made - {backup["id"] for backup in kept}:
            self.api.delete(f"/v1/backup/{backup_id}")
            self._made.discard(backup_id)

    def restore(self, box: str, backup: Backup, *, mode: str = "overlay") -> None:
        """Restores a backup into a sandbox, which may be a new one: `mode` is "overlay" or "copy"."""
        self._post(f"/v1/sandbox/{box}/restore", {**backup, "mode": mode})

    def fork(self, backup: Backup, count: int) -> list[str]:
        """Makes sandboxes from a backup in one call; returns their names."""
        made = self._post(f"/v1/backup/{backup['id']}/fork", {"count": count})
        assert made["success"], made
        return [row["id"] for row in made["forks"]]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self.api.post(path, json=body).json()
        return answer

    def destroy(self, box: str) -> None:
        """Deletes a sandbox; tries again for a minute, as the service asks for where its mounts are still in use."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.api.delete(f"/v1/sandbox/{box}")
            except httpx.HTTPStatusError as e:
                if e.response.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return

    def empty_cache(self) -> None:
        """Removes the archives that the node keeps."""
        for archive in (self.data_dir / "node" / "cache").glob("*.sqsh"):
            archive.unlink()

    def store(self) -> dict[str, str]:
        """The environment variables that open the embedded store."""
        lines = (self.data_dir / "secrets" / "store.env").read_text().splitlines()
        return dict(shlex.split(line)[0].split("=", 1) for line in lines if "=" in line)

    def s3_client(self) -> Any:
        """A client of the embedded store."""
        store = self.store()
        return boto3.client(
            "s3",
            endpoint_url=store["AWS_ENDPOINT_URL"],
            aws_access_key_id=store["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=store["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, proxies={}),
        )

    def stored_bytes(self) -> int:
        """The size of all objects in the embedded store, without the copies that it made of archives for layers.

        Its growth is what was sent to it.
        """
        folder = self.data_dir / "s3"
        sizes = {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        archives = {size for path, size in sizes.items() if path.name == "data.sqsh"}
        return sum(size for path, size in sizes.items() if path.parent.name != "layers" or size not in archives)


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Holdfast]:
    """Runs a service with its data in `folder` within the block."""
    folder.mkdir()
    service = start(folder, **settings)
    service.api.event_hooks = {"response": [_raise_with_body]}
    try:
        yield Holdfast(service.api, folder)
    finally:
        service.stop()
        if left := [mount.point for mount in mountinfo.mounts_under(folder)]:
            mounting.sweep(folder)  # else the folder could not be removed
            raise RuntimeError(f"the service has left mounts behind: {left}")


def _raise_with_body(response: httpx.Response) -> None:
    if response.is_error:
        said = response.read().decode(errors="replace")
        raise httpx.HTTPStatusError(f"{response.status_code}: {said}", request=response.request, response=response)
