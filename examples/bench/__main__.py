"""Runs the benchmark. Compare the ratios of one run; no time is a promise.

make bench                  everything, an hour
make bench BENCH=--quick    smaller directories and fewer rounds, some minutes
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from demo import tar_of
from rich.console import Console

from bench import first_calls, report
from bench.peers import READ_EVERYTHING, Restic, read_everything, tar_and_zstd
from bench.processes import Peak, cpu_s, named, pss_mb
from bench.samples import Contestant, Row, interleaved
from bench.sdk import SdkPipeline
from bench.service import BUCKET, Holdfast, running
from bench.workloads import Workload, change, random_bytes, workloads

FORKS = 10
RESTIC_BUCKET = "restic"
"""The embedded store serves every folder beside its bucket's as a bucket."""
console = Console(highlight=False)


def main() -> int:
    """Runs everything; prints the tables, and writes bench.json and bench.svg."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller directories and fewer rounds")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for bench.json and bench.svg")
    parser.add_argument("--only", metavar="NAME", help="only the directory of this name, such as 'git repository'")
    given = parser.parse_args()
    described = report.machine()
    rows: list[Row] = []
    figures: list[tuple[str, str]] = []
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name,
        running(Path(name) / "data") as holdfast,
        closing(Bench(holdfast, Path(name), rounds=2 if given.quick else 5)) as bench,
    ):
        for workload in workloads(bench.folder("workloads"), quick=given.quick, only=given.only):
            figures.append((f"workload: {workload.name}", workload.description))
            console.print(f"[dim]{figures[-1][0]}, {figures[-1][1]}[/dim]")
            rows += bench.rows(workload)
        rows += bench.calls()
        rows.append(bench.many_forks(10 if given.quick else 50))
        rows.append(first_calls.with_a_waiting_worker(holdfast, rounds=2 if given.quick else 10))
        rows += bench.large_file(size_mib=32 if given.quick else 256)
        figures += bench.memory(boxes=5, size_mib=50) if given.quick else bench.memory(boxes=40, size_mib=500)
        rows.append(first_calls.without_a_worker(Path(name) / "cold", rounds=2 if given.quick else 10))
    report.show(rows, figures)
    report.write(given.out, rows, figures, described)
    console.print(f"written: {given.out / 'bench.json'}, {given.out / 'bench.svg'}")
    return 0


class Bench:
    """The benchmark's rows over one running service. Everyone's data goes into its S3 server."""

    def __init__(self, holdfast: Holdfast, scratch: Path, *, rounds: int) -> None:
        self._holdfast = holdfast
        self._scratch = scratch
        self._rounds = rounds
        self._s3 = holdfast.s3_client()
        self._sdk = SdkPipeline(self._s3, BUCKET, self.folder("sdk"))
        self._restic: Restic | None = None
        if Restic.is_installed():
            (holdfast.data_dir / "s3" / RESTIC_BUCKET).mkdir()
            self._restic = Restic(holdfast.store(), RESTIC_BUCKET, self.folder("restic"))
        else:
            console.print("[yellow]restic is not installed, so its rows are left out: apt-get install restic[/yellow]")

    def close(self) -> None:
        """Unmounts what a failure has left mounted."""
        self._sdk.remove_restored()

    def folder(self, name: str) -> Path:
        """Makes a folder of this name for a contestant."""
        made = self._scratch / name
        made.mkdir()
        return made

    def rows(self, workload: Workload) -> Iterator[Row]:
        """Measures one directory: backups, restores, and forks."""
        holdfast, folder = self._holdfast, workload.folder
        box = holdfast.with_files(folder)
        backup, sdk_backup = holdfast.back_up(box), self._sdk.back_up(folder)
        yield self._create(workload, box)
        yield from self._restore(workload, backup, sdk_backup)
        if not workload.is_empty:
            yield self._create_again(workload, box)
            yield self._create_again_over_an_overlay(workload, backup)
        yield self._fork(workload, backup, sdk_backup)
        holdfast.destroy(box)

    def _restic_for(self, workload: Workload) -> Restic | None:
        """The repository of restic, which refuses empty directories; None if it is not installed."""
        return None if workload.is_empty else self._restic

    def _interleaved(self, row: Row, contestants: dict[str, Contestant]) -> Row:
        console.print(f"[dim]  {row.what}[/dim]")
        return interleaved(row, contestants, rounds=self._rounds, stored=self._holdfast.stored_bytes)

    def _create(self, workload: Workload, box: str) -> Row:
        folder, archive = workload.folder, self._scratch / "tar.zst"
        contestants = {
            "sdk": Contestant(lambda: self._sdk.back_up(folder)),
            "holdfast": Contestant(lambda: self._holdfast.back_up(box)),
            "tar | zstd, not sent": Contestant(lambda: tar_and_zstd(folder, archive)),
            "only reading": Contestant(lambda: read_everything(folder)),
        }
        if restic := self._restic_for(workload):
            contestants["restic"] = Contestant(lambda: restic.back_up(folder))
        return self._interleaved(Row(workload.name, "create", "sdk", reach=0.6), contestants)

    def _create_again(self, workload: Workload, box: str) -> Row:
        """A second backup of plain files, after 1 MB was written and a file deleted; beside our own full one."""
        folder, workspace = workload.folder, self._holdfast.workspace(box)
        full = self._holdfast.with_files(folder)
        contestants = {
            "holdfast, all new": Contestant(
                lambda: self._holdfast.back_up(full), before=lambda: self._replace(full, folder)
            ),
            "holdfast": Contestant(lambda: self._holdfast.back_up(box), before=lambda: change(workspace)),
        }
        if restic := self._restic_for(workload):
            contestants["restic"] = Contestant(lambda: restic.back_up_again(folder), before=lambda: change(folder))
        row = Row(workload.name, "create again, 1 MB changed", "holdfast, all new", reach=0.25)
        return self._interleaved(row, contestants)

    def _replace(self, box: str, folder: Path) -> None:
        """Writes all files of a sandbox anew."""
        self._holdfast.execute(box, "find . -mindepth 1 -delete")
        self._holdfast.api.post(f"/v1/sandbox/{box}/hydrate", content=tar_of(folder)).raise_for_status()

    def _create_again_over_an_overlay(self, workload: Workload, backup: dict[str, object]) -> Row:
        box = self._holdfast.new_name()
        self._holdfast.restore(box, backup)
        script = 'head -c 1000000 /dev/urandom > changed-$RANDOM; rm -f -- "$(find . -type f | head -1)"'
        contestants = {
            "sdk": Contestant(lambda: self._sdk.back_up(workload.folder)),
            "holdfast": Contestant(
                lambda: self._holdfast.back_up(box), before=lambda: self._holdfast.execute(box, script)
            ),
        }
        row = Row(workload.name, "create again over a restored overlay", "sdk", reach=0.06)
        return self._interleaved(row, contestants)

    def _restore(self, workload: Workload, backup: dict[str, object], sdk_backup: str) -> Iterator[Row]:
        holdfast = self._holdfast
        box = holdfast.new_name()
        sdk = Contestant(lambda: self._sdk.restore(sdk_backup), after=self._sdk.remove_restored)
        cold = {"sdk": sdk, "holdfast": Contestant(lambda: holdfast.restore(box, backup), before=holdfast.empty_cache)}
        if restic := self._restic_for(workload):
            cold["restic"] = Contestant(restic.restore)
        yield self._interleaved(Row(workload.name, "restore, archive not on the node", "sdk", reach=0.7), cold)
        again = {"sdk": sdk, "holdfast": Contestant(lambda: holdfast.restore(box, backup))}
        yield self._interleaved(Row(workload.name, "restore, archive on the node", "sdk"), again)

        def restore_and_read() -> None:
            holdfast.restore(box, backup)
            holdfast.execute(box, READ_EVERYTHING)

        reading = {
            "sdk": Contestant(lambda: read_everything(self._sdk.restore(sdk_backup)), after=self._sdk.remove_restored),
            "holdfast": Contestant(restore_and_read),
        }
        yield self._interleaved(Row(workload.name, "restore, then read everything", "sdk", reach=0.2), reading)
        holdfast.destroy(box)

    def _fork(self, workload: Workload, backup: dict[str, object], sdk_backup: str) -> Row:
        """A checkpoint restored into other sandboxes; beside the SDK's restore, which is all that it can do."""
        holdfast = self._holdfast
        awake, made = holdfast.new_name(), list[str]()
        holdfast.execute(awake, "true")

        def into_a_new_one() -> None:
            made.append(holdfast.new_name())
            holdfast.restore(made[-1], backup)

        def into_ten() -> None:
            names = [holdfast.new_name() for _ in range(FORKS)]
            made.extend(names)
            with ThreadPoolExecutor(FORKS) as threads:
                list(threads.map(lambda name: holdfast.restore(name, backup), names))

        def removed() -> None:
            while made:
                holdfast.destroy(made.pop())

        contestants = {
            "sdk": Contestant(lambda: self._sdk.restore(sdk_backup), after=self._sdk.remove_restored),
            "holdfast, awake sandbox": Contestant(lambda: holdfast.restore(awake, backup)),
            "holdfast, new sandbox": Contestant(into_a_new_one, after=removed),
            f"holdfast, {FORKS} at once": Contestant(into_ten, after=removed),
        }
        row = self._interleaved(Row(workload.name, "fork", "sdk"), contestants)
        holdfast.destroy(awake)
        return row

    def many_forks(self, count: int) -> Row:
        """Makes many sandboxes from a small backup in one call, beside one sandbox by the same call."""
        holdfast = self._holdfast
        base, made = holdfast.new_name(), list[str]()
        holdfast.execute(base, "echo 1 > file")
        backup = holdfast.back_up(base)

        def removed() -> None:
            while made:
                holdfast.destroy(made.pop())

        contestants = {
            "1 sandbox": Contestant(lambda: made.extend(holdfast.fork(backup, 1)), after=removed),
            f"{count} sandboxes": Contestant(lambda: made.extend(holdfast.fork(backup, count)), after=removed),
        }
        row = Row("one file", "fork in one call", "1 sandbox")
        console.print(f"[dim]  {row.what}[/dim]")
        row = interleaved(row, contestants, rounds=1, stored=lambda: 0)
        holdfast.destroy(base)
        return row

    def calls(self) -> Iterator[Row]:
        """Measures what does not depend on the directory, beside one raw transfer of a MiB and an idle request."""
        holdfast, data = self._holdfast, bytes(2**20)
        box = holdfast.new_name()
        holdfast.execute(box, "true")
        contestants = {
            "state of a sandbox": Contestant(lambda: holdfast.api.get(f"/v1/sandbox/{box}").raise_for_status()),
            "exec true": Contestant(lambda: holdfast.execute(box, "true")),
            "health": Contestant(lambda: holdfast.api.get("/health").raise_for_status()),
            "raw PUT of 1 MiB": Contestant(lambda: self._s3.put_object(Bucket=BUCKET, Key="raw", Body=data)),
            "raw GET of 1 MiB": Contestant(lambda: self._s3.get_object(Bucket=BUCKET, Key="raw")["Body"].read()),
        }
        yield self._interleaved(Row("any", "one call", "health"), contestants)
        holdfast.destroy(box)

    def large_file(self, *, size_mib: int) -> Iterator[Row]:
        """Sends a file into a sandbox and fetches it, beside the same bytes sent to the S3 server and fetched."""
        holdfast, data = self._holdfast, os.urandom(size_mib * 2**20)
        box = holdfast.new_name()
        url = f"/v1/sandbox/{box}/file/workspace/big"
        sent = {
            "raw PUT": Contestant(lambda: self._s3.put_object(Bucket=BUCKET, Key="raw", Body=data)),
            "holdfast": Contestant(lambda: holdfast.api.put(url, content=data).raise_for_status()),
        }
        yield self._interleaved(Row(f"{size_mib} MiB", "send a file", "raw PUT"), sent)
        fetched = {
            "raw GET": Contestant(lambda: self._s3.get_object(Bucket=BUCKET, Key="raw")["Body"].read()),
            "holdfast": Contestant(lambda: holdfast.api.get(url).raise_for_status()),
        }
        yield self._interleaved(Row(f"{size_mib} MiB", "fetch a file", "raw GET"), fetched)
        holdfast.destroy(box)

    def memory(self, *, boxes: int, size_mib: int) -> Iterator[tuple[str, str]]:
        """Measures idle sandboxes, and the memory that one backup and one restore need beyond them."""
        holdfast = self._holdfast
        names = [holdfast.new_name() for _ in range(boxes)]
        for name in names:
            holdfast.execute(name, "true")
        actors = named(b"ray::SandboxHost")
        used_s = _idle_cpu(actors)
        yield f"memory of an awake idle sandbox, of {boxes}", f"{sum(map(pss_mb, actors)) / len(actors):.1f} MB (PSS)"
        yield "processor time of an awake idle sandbox", f"{1000 * used_s / len(actors):.1f} ms a second"
        folder = self.folder("memory")
        random_bytes(folder, size_mib=size_mib)
        box = holdfast.with_files(folder)
        with Peak() as backing_up:
            backup = holdfast.back_up(box)
        holdfast.empty_cache()
        with Peak() as restoring:  # into an awake sandbox: the process of a new one would count as a whole
            holdfast.restore(names[0], backup)
        for what, watched in (("backup of random bytes", backing_up), ("restore of it", restoring)):
            highest = sorted(watched.above_mb.items(), key=lambda row: -row[1])[:4]
            yield f"peak memory above the idle state: {what}", ", ".join(f"{name} {mb:.0f} MB" for name, mb in highest)


def _idle_cpu(processes: list[int], *, seconds: float = 10.0) -> float:
    """The processor time of the processes in a second of idling, in seconds."""
    before = sum(map(cpu_s, processes))
    time.sleep(seconds)
    return (sum(map(cpu_s, processes)) - before) / seconds


if __name__ == "__main__":
    sys.exit(main())
