"""The running Holdfast service, as the benchmark uses it: over HTTP, beside its own S3 server."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config
from demo import execute, start, tar_of

BUCKET = "holdfast"


class Holdfast:
    """A client of the service. `data_dir` is the service's folder on this machine."""

    def __init__(self, api: httpx.Client, data_dir: Path) -> None:
        self.api = api
        self.data_dir = data_dir

    def new_name(self) -> str:
        """A name that no sandbox has had."""
        return f"b-{uuid.uuid4().hex[:12]}"

    def with_files(self, folder: Path) -> str:
        """Makes a sandbox whose /workspace holds a copy of the directory; returns its name."""
        box = self.new_name()
        if any(folder.iterdir()):
            self.api.post(f"/v1/sandbox/{box}/hydrate", content=tar_of(folder)).raise_for_status()
        else:
            execute(self.api, box, "true")
        return box

    def execute(self, box: str, script: str) -> str:
        """Runs a shell script in /workspace; returns its output."""
        return execute(self.api, box, script)

    def back_up(self, box: str) -> dict[str, Any]:
        """Backs /workspace up; returns the handle."""
        return self._post(f"/v1/sandbox/{box}/backup", {"dir": "/workspace"})

    def restore(self, box: str, backup: dict[str, Any]) -> None:
        """Restores a backup into a sandbox, which may be a new one."""
        self._post(f"/v1/sandbox/{box}/restore", dict(backup))

    def fork(self, backup: dict[str, Any], count: int) -> list[str]:
        """Makes sandboxes from a backup in one call; returns their names."""
        made = self._post(f"/v1/backup/{backup['id']}/fork", {"count": count})
        assert made["success"], made
        return [row["id"] for row in made["forks"]]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self.api.post(path, json=body).raise_for_status().json()
        return answer

    def destroy(self, box: str) -> None:
        """Deletes a sandbox."""
        self.api.delete(f"/v1/sandbox/{box}").raise_for_status()

    def empty_cache(self) -> None:
        """Removes the archives that the node keeps."""
        for archive in (self.data_dir / "node" / "cache").glob("*.sqsh"):
            archive.unlink()

    def workspace(self, box: str) -> Path:
        """The folder of a sandbox's /workspace on this machine."""
        return self.data_dir / "node" / "boxes" / "default" / box / "root" / "workspace"

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
        """The size of all objects in the embedded store."""
        total = 0
        for path in (self.data_dir / "s3").rglob("*"):
            if path.is_file():
                total += path.stat().st_size
        return total


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Holdfast]:
    """Runs a service with its data in `folder` within the block."""
    folder.mkdir()
    service = start(folder, **settings)
    try:
        yield Holdfast(service.api, folder)
    finally:
        service.stop()
