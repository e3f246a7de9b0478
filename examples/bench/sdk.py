"""The data path of Cloudflare's Sandbox SDK 0.12, with its own tools: mksquashfs, curl, squashfuse, fuse-overlayfs.

An archive below 10 MiB goes up in one presigned PUT, a larger one in 16 presigned parts at once. It comes down in eight
ranges at once. The SDK's Worker and its container are left out; only what moves and packs the bytes is timed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_ONE_PUT_BYTES = 10 * 2**20
_PARTS, _RANGES = 16, 8
_CURL = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*"]


class SdkPipeline:
    """The pipeline over a bucket. `client` signs the URLs."""

    def __init__(self, client: Any, bucket: str, scratch: Path) -> None:
        self._client = client
        self._bucket = bucket
        self._scratch = scratch
        self._restored: list[Path] = []
        self._made = set[str]()

    def back_up(self, folder: Path) -> str:
        """Archives and uploads a directory; returns the backup's id."""
        backup = str(uuid.uuid4())
        archive = self._scratch / f"{backup}.sqsh"
        options = ["-comp", "lz4", "-processors", "8", "-no-progress", "-noappend"]
        subprocess.run(["mksquashfs", folder, archive, *options], check=True, capture_output=True)
        size, key = archive.stat().st_size, f"sdk/{backup}/data.sqsh"
        if size < _ONE_PUT_BYTES:
            curl(["--upload-file", str(archive)], self._signed("put_object", Key=key))
        else:
            self._put_parts(archive, key, size)
        assert self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"] == size
        self._client.put_object(Bucket=self._bucket, Key=f"sdk/{backup}/meta.json", Body=json.dumps({"size": size}))
        archive.unlink()
        self._made.add(backup)
        return backup

    def delete_all_but(self, *kept: str) -> None:
        """Deletes all backups but these."""
        for backup in self._made - set(kept):
            for name in ("meta.json", "data.sqsh"):
                self._client.delete_object(Bucket=self._bucket, Key=f"sdk/{backup}/{name}")
            self._made.discard(backup)

    def _put_parts(self, archive: Path, key: str, size: int) -> None:
        upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=key)["UploadId"]
        part_bytes = -(-size // _PARTS)

        def send(number: int) -> dict[str, Any]:
            url = self._signed("upload_part", Key=key, UploadId=upload, PartNumber=number)
            with archive.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            answer = curl(["--request", "PUT", "--data-binary", "@-", "--dump-header", "-"], url, given=data)
            (etag,) = (line[6:].strip() for line in answer.decode().splitlines() if line.lower().startswith("etag:"))
            return {"PartNumber": number, "ETag": etag}

        with ThreadPoolExecutor(_PARTS) as threads:
            parts = list(threads.map(send, range(1, _PARTS + 1)))
        self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    def restore(self, backup: str) -> Path:
        """Downloads and mounts a backup; returns the mounted directory."""
        key, folder = f"sdk/{backup}/data.sqsh", self._scratch / f"restored-{uuid.uuid4().hex[:8]}"
        for name in ("lower", "upper", "work", "merged"):
            (folder / name).mkdir(parents=True)
        self._client.get_object(Bucket=self._bucket, Key=f"sdk/{backup}/meta.json")["Body"].read()
        size = self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        archive, url = folder / "data.sqsh", self._signed("get_object", Key=key)
        step = -(-size // _RANGES)

        def fetch(number: int) -> None:
            begin, end = number * step, min(size, (number + 1) * step) - 1
            data = curl(["--range", f"{begin}-{end}"], url)
            with archive.open("r+b") as file:
                file.seek(begin)
                file.write(data)

        archive.touch()
        with ThreadPoolExecutor(_RANGES) as threads:
            list(threads.map(fetch, range(-(-size // step))))
        self._restored.append(folder)
        subprocess.run(["squashfuse", archive, folder / "lower"], check=True, capture_output=True)
        layers = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
        subprocess.run(["fuse-overlayfs", "-o", layers, folder / "merged"], check=True, capture_output=True)
        return folder / "merged"

    def remove_restored(self) -> None:
        """Unmounts what was restored, and removes its files."""
        while self._restored:
            folder = self._restored.pop()
            for name in ("merged", "lower"):
                # Lazily: fuse-overlayfs may still be about to end, and keeps the lower file system busy until then.
                if (folder / name).is_mount():
                    subprocess.run(["umount", "--lazy", folder / name], check=True)
            shutil.rmtree(folder)

    def _signed(self, operation: str, **parameters: Any) -> str:
        return str(self._client.generate_presigned_url(operation, Params={"Bucket": self._bucket, **parameters}))


def curl(arguments: Sequence[str], url: str, *, given: bytes | None = None) -> bytes:
    """Runs curl; returns what it prints. The URL is a secret, so it comes from a pipe and not from the command line."""
    reading, writing = os.pipe()
    try:
        os.write(writing, f'url = "{url}"\n'.encode())
        os.close(writing)
        command = [*_CURL, "--config", f"/dev/fd/{reading}", *arguments]
        return subprocess.run(command, input=given, check=True, capture_output=True, pass_fds=(reading,)).stdout
    finally:
        os.close(reading)
