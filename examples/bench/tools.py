"""The tools that are compared. All of them use the S3 server of one running service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from bench.peers import RawTransfer, Restic, delete_objects
from bench.samples import Contestant, Row, interleaved
from bench.sdk import SdkPipeline
from bench.service import BUCKET, Backup, Holdfast

RESTIC_BUCKET = "restic"
"""The embedded store serves every folder beside its bucket's as a bucket."""
console = Console(highlight=False)


class Tools:
    """The tools, and the rounds in which they are measured."""

    def __init__(self, holdfast: Holdfast, scratch: Path, *, rounds: int) -> None:
        self.holdfast = holdfast
        self.rounds = rounds
        self._scratch = scratch
        self.s3 = holdfast.s3_client()
        self.sdk = SdkPipeline(self.s3, BUCKET, self.folder("sdk"))
        self.archive = scratch / "archive"
        """A file that a row may write."""
        self.raw = RawTransfer(self.s3, BUCKET, scratch / "raw")
        self.restic: Restic | None = None
        if Restic.is_installed():
            (holdfast.data_dir / "s3" / RESTIC_BUCKET).mkdir()
            self.restic = Restic(holdfast.store(), RESTIC_BUCKET, self.folder("restic"))
        else:
            console.print("[yellow]restic is not installed, so its rows are left out: apt-get install restic[/yellow]")

    def close(self) -> None:
        """Unmounts what a failure has left mounted."""
        self.sdk.remove_restored()

    def folder(self, name: str) -> Path:
        """Makes a folder of this name, which goes with the benchmark."""
        made = self._scratch / name
        made.mkdir()
        return made

    def interleaved(self, row: Row, contestants: Mapping[str, Contestant], *, rounds: int | None = None) -> Row:
        """Measures a row."""
        console.print(f"[dim]  {row.what}[/dim]")
        interleaved(row, contestants, rounds=rounds or self.rounds, stored=self.holdfast.stored_bytes)
        for name, why in row.failures.items():
            console.print(f"[red]    {name} failed: {why}[/red]")
        return row

    def delete_all_but(self, kept: list[Backup], sdk_kept: str) -> None:
        """Deletes what the last row has stored, and unmounts what it has restored."""
        self.holdfast.delete_all_but(*kept)
        self.sdk.remove_restored()
        self.sdk.delete_all_but(sdk_kept)
        if self.restic is not None:
            delete_objects(self.s3, RESTIC_BUCKET)
