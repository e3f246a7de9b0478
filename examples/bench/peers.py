"""Other tools for the same work: restic, and tar with zstd."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path


class Restic:
    """A restic repository in a bucket of its own."""

    def __init__(self, store: Mapping[str, str], bucket: str, scratch: Path) -> None:
        """`store` has AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
        self._environment = {
            **{name: store[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
            "PATH": os.environ["PATH"],
            "HOME": str(scratch),
            "RESTIC_REPOSITORY": f"s3:{store['AWS_ENDPOINT_URL']}/{bucket}",
            "RESTIC_PASSWORD": "of-a-benchmark",
            "RESTIC_CACHE_DIR": str(scratch / "restic-cache"),
        }
        self._scratch = scratch
        self._run("init")

    @staticmethod
    def is_installed() -> bool:
        """True if there is a `restic` to run."""
        return shutil.which("restic") is not None

    def back_up(self, folder: Path) -> None:
        """Backs a directory up as if for the first time: without the list of files of an earlier backup."""
        self._run("backup", "--force", ".", folder=folder)

    def back_up_again(self, folder: Path) -> None:
        """Backs a directory up beside its last backup: unchanged files are not read."""
        self._run("backup", ".", folder=folder)

    def restore(self) -> Path:
        """Restores the last backup; returns the folder."""
        to = self._scratch / "from-restic"
        self._run("restore", "latest", "--target", str(to))
        return to

    def _run(self, *arguments: str, folder: Path | None = None) -> None:
        command = ["restic", "--quiet", *arguments]
        subprocess.run(command, check=True, capture_output=True, env=self._environment, cwd=folder)


def tar_and_zstd(folder: Path, to: Path) -> None:
    """Packs a directory into one compressed file on the disk, and sends it nowhere."""
    with to.open("wb") as file:
        tar = subprocess.Popen(["tar", "-C", folder, "-cf", "-", "."], stdout=subprocess.PIPE)
        subprocess.run(["zstd", "-1", "-T0", "--quiet"], stdin=tar.stdout, stdout=file, check=True)
        assert tar.stdout is not None
        tar.stdout.close()
        assert tar.wait() == 0


def read_everything(folder: Path) -> None:
    """Reads every file of a directory."""
    subprocess.run(["sh", "-c", READ_EVERYTHING], cwd=folder, check=True)


READ_EVERYTHING = "find . -type f -print0 | xargs -0 --no-run-if-empty cat >/dev/null"
