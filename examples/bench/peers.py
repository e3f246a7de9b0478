"""Other tools for the same work: restic, tar with zstd, and single transfers to the store."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.sdk import curl


class Restic:
    """A restic repository in a bucket of its own."""

    def __init__(self, store: Mapping[str, str], bucket: str, scratch: Path) -> None:
        """`store` has AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
        self._bucket = f"s3:{store['AWS_ENDPOINT_URL']}/{bucket}"
        self._environment = {
            **{name: store[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
            "PATH": os.environ["PATH"],
            "HOME": str(scratch),
            "RESTIC_PASSWORD": "of-a-benchmark",
        }
        self._scratch = scratch

    @staticmethod
    def is_installed() -> bool:
        """True if there is a `restic` to run."""
        return shutil.which("restic") is not None

    def begin_anew(self) -> None:
        """Makes an empty repository, and forgets the last one: what a repository has is not sent again."""
        name = uuid.uuid4().hex
        self._environment |= {
            "RESTIC_REPOSITORY": f"{self._bucket}/{name}",
            "RESTIC_CACHE_DIR": str(self._scratch / f"cache-{name}"),
        }
        self._run("init")

    def back_up(self, folder: Path) -> None:
        """Backs a directory up. Beside its last backup in the repository, unchanged files are not read."""
        self._run("backup", ".", folder=folder)

    def restore(self) -> Path:
        """Restores the last backup; returns the folder."""
        to = self._scratch / "restored"
        self._run("restore", "latest", "--no-cache", "--target", str(to))
        return to

    def remove_restored(self) -> None:
        """Removes the restored files."""
        shutil.rmtree(self._scratch / "restored", ignore_errors=True)

    def _run(self, *arguments: str, folder: Path | None = None) -> None:
        command = ["restic", "--quiet", *arguments]
        subprocess.run(command, check=True, capture_output=True, env=self._environment, cwd=folder)


class RawTransfer:
    """One transfer of as many bytes as an archive has, by one curl: no backup can be faster on this store."""

    def __init__(self, client: Any, bucket: str, file: Path) -> None:
        """`file` is made by `hold`."""
        self._client = client
        self._object = {"Bucket": bucket, "Key": "raw"}
        self._file = file

    def hold(self, size_bytes: int) -> None:
        """Takes as many random bytes as what is transferred."""
        self._file.write_bytes(os.urandom(size_bytes))
        self.put()

    def put(self) -> None:
        """Sends the bytes."""
        curl(["--upload-file", str(self._file)], self._client.generate_presigned_url("put_object", Params=self._object))

    def get(self) -> None:
        """Fetches the bytes, and keeps them nowhere."""
        curl(["--output", "/dev/null"], self._client.generate_presigned_url("get_object", Params=self._object))


def delete_objects(client: Any, bucket: str, prefix: str = "") -> None:
    """Deletes all objects of a bucket whose keys begin with `prefix`."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", []):
            client.delete_object(Bucket=bucket, Key=found["Key"])


def tar_and_zstd(folder: Path, to: Path) -> None:
    """Packs a directory into one compressed file on the disk, and sends it nowhere."""
    with to.open("wb") as file, subprocess.Popen(["tar", "-C", folder, "-cf", "-", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(["zstd", "-1", "-T0", "--quiet"], stdin=tar.stdout, stdout=file, check=True)
    assert tar.returncode == 0, "tar failed"


def mksquashfs(folder: Path, to: Path) -> None:
    """Archives a directory in Holdfast's format, without a search for equal files, and sends it nowhere."""
    options = ["-noappend", "-quiet", "-no-progress", "-no-duplicates"]
    options += ["-comp", "zstd", "-Xcompression-level", "1", "-b", "256K"]
    subprocess.run(["mksquashfs", folder, to, *options], check=True, capture_output=True)


def look_at_everything(folder: Path) -> None:
    """Asks for the state of every file of a directory, and reads none."""
    subprocess.run(["find", ".", "-printf", "%i %s %C@"], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def read_everything(folder: Path) -> None:
    """Reads every file of a directory."""
    subprocess.run(["sh", "-c", READ_EVERYTHING], cwd=folder, check=True)


READ_EVERYTHING = "find . -type f -exec cat {} + >/dev/null"
