"""Measures one directory: backups, incremental backups, restores, and forks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from bench.peers import READ_EVERYTHING, look_at_everything, mksquashfs, read_everything, tar_and_zstd
from bench.samples import Contestant, Row
from bench.service import Backup
from bench.tools import Tools
from bench.workloads import Workload, change, manifest

FULL = "holdfast, in full"


class Directory:
    """One directory, with a backup of it by each tool, as the rows need them."""

    def __init__(self, tools: Tools, workload: Workload, *, forks: int) -> None:
        """`forks` is the number of sandboxes that are made in one call."""
        self._forks = forks
        self._tools, self._holdfast, self._sdk = tools, tools.holdfast, tools.sdk
        self._workload, self._folder = workload, workload.folder
        self._is_empty = workload.is_empty
        self._restic = None if self._is_empty else tools.restic  # which refuses empty directories
        self._files = manifest(workload.folder)
        self._box = self._holdfast.with_files(workload.folder)
        self._backup = self._holdfast.back_up(self._box, full=True)
        self._changed = self._holdfast.new_name()
        self._holdfast.restore(self._changed, self._backup)
        self._incremental: Backup | None = None
        if not self._is_empty:
            self._holdfast.change(self._changed)
            self._incremental = self._holdfast.back_up(self._changed)
            self._is_layer(self._incremental)
        self._sdk_backup = self._sdk.back_up(workload.folder)
        tools.raw.hold(self._holdfast.info(self._backup)["size_bytes"])

    def rows(self) -> Iterator[Row]:
        """Measures all rows."""
        yield self._create()
        yield from self._restore()
        yield self._fork()
        if not self._is_empty:
            yield self._create_again(restored=False)
            yield self._create_again(restored=True)
        for box in (self._box, self._changed):
            self._holdfast.destroy(box)
        self._holdfast.delete_all_but()
        self._sdk.delete_all_but()

    def _row(self, what: str, contestants: Mapping[str, Contestant], *others: str, reach: float | None = None) -> Row:
        """Measures a row. It is compared with the SDK, and with `others`."""
        row = self._tools.interleaved(Row(self._workload.name, what, ("sdk", *others), reach), contestants)
        kept = [self._backup] if self._incremental is None else [self._backup, self._incremental]
        self._tools.delete_all_but(kept, self._sdk_backup)
        return row

    def _create(self) -> Row:
        folder, archive = self._folder, self._tools.archive
        contestants = {
            "sdk": Contestant(lambda: self._sdk.back_up(folder)),
            "holdfast": Contestant(
                lambda: self._holdfast.back_up(self._box, full=True),
                check=self._is_whole,
                prove=lambda backup: self._proven(backup, self._files),
            ),
            "tar | zstd, not sent": Contestant(lambda: tar_and_zstd(folder, archive)),
            "mksquashfs, not sent": Contestant(lambda: mksquashfs(folder, archive)),
            "only reading": Contestant(lambda: read_everything(folder)),
            "raw PUT of the archive": Contestant(self._tools.raw.put),
        }
        if restic := self._restic:
            contestants["restic"] = Contestant(lambda: restic.back_up(folder), before=restic.begin_anew)
        return self._row("create", contestants, reach=0.6)

    def _create_again(self, *, restored: bool) -> Row:
        """Backups after 1 MB was changed and a file deleted; in a directory of plain files, or in a restored overlay.

        The first incremental backup on a full one has the store copy the full one's archive, so it is measured apart.
        """
        holdfast, mode = self._holdfast, "overlay" if restored else "copy"
        whole, layered = holdfast.new_name(), holdfast.new_name()
        for box in (whole, layered):
            holdfast.restore(box, self._backup, mode=mode)
        folder = self._sdk.restore(self._sdk_backup) if restored else self._folder

        def begin_anew() -> None:
            full = holdfast.back_up(layered, full=True)
            if restored:
                holdfast.restore(layered, full)
            holdfast.change(layered)

        contestants = {
            "sdk": Contestant(lambda: self._sdk.back_up(folder), before=lambda: change(folder)),
            FULL: Contestant(
                lambda: holdfast.back_up(whole, full=True),
                before=lambda: holdfast.change(whole),
                check=self._is_whole,
                prove=lambda backup: self._proven(backup, holdfast.manifest(whole)),
            ),
            "holdfast, first on a full one": Contestant(
                lambda: holdfast.back_up(layered),
                before=begin_anew,
                check=self._is_layer,
                prove=lambda backup: self._proven(backup, holdfast.manifest(layered)),
            ),
            "holdfast": Contestant(
                lambda: holdfast.back_up(layered),
                before=lambda: holdfast.change(layered),
                check=self._is_layer,
                prove=lambda backup: self._proven(backup, holdfast.manifest(layered)),
            ),
        }
        if not restored:
            contestants["only looking at each file"] = Contestant(lambda: look_at_everything(folder))
        if (restic := self._restic) and not restored:
            restic.begin_anew()
            restic.back_up(folder)
            contestants["restic"] = Contestant(lambda: restic.back_up(folder), before=lambda: change(folder))
        where = "over a restored overlay" if restored else "of plain files"
        row = self._row(f"create again {where}, 1 MB changed", contestants, FULL, reach=0.06 if restored else 0.25)
        for box in (whole, layered):
            holdfast.destroy(box)
        return row

    def _restore(self) -> Iterator[Row]:
        holdfast, incremental = self._holdfast, self._incremental
        box, layered = holdfast.new_name(), holdfast.new_name()
        sdk = Contestant(
            lambda: self._sdk.restore(self._sdk_backup),
            prove=lambda folder: self._same(manifest(folder)),
            after=self._sdk.remove_restored,
        )

        def contestants(run: Callable[[str, Backup], object], before: Callable[[], object]) -> dict[str, Contestant]:
            found = {
                "holdfast": Contestant(
                    lambda: run(box, self._backup), before=before, prove=lambda _: self._same(holdfast.manifest(box))
                )
            }
            if incremental is not None:
                files = holdfast.manifest(self._changed)
                found["holdfast, incremental"] = Contestant(
                    lambda: run(layered, incremental),
                    before=before,
                    prove=lambda _: self._same(holdfast.manifest(layered), files),
                )
            return found

        def restore_and_read(name: str, backup: Backup) -> None:
            holdfast.restore(name, backup)
            holdfast.execute(name, READ_EVERYTHING)

        cold = {"sdk": sdk, **contestants(holdfast.restore, holdfast.empty_cache)}
        cold["raw GET of the archive"] = Contestant(self._tools.raw.get)
        if restic := self._restic:
            restic.begin_anew()
            restic.back_up(self._folder)
            cold["restic"] = Contestant(
                restic.restore, prove=lambda folder: self._same(manifest(folder)), after=restic.remove_restored
            )
        yield self._row("restore, archive not on the node", cold, reach=0.7)
        on_node = {"sdk": sdk, **contestants(holdfast.restore, lambda: None)}
        yield self._row("restore, archive on the node", on_node)
        reading = {
            "sdk": Contestant(
                lambda: read_everything(self._sdk.restore(self._sdk_backup)), after=self._sdk.remove_restored
            ),
            **contestants(restore_and_read, lambda: None),
        }
        yield self._row("restore, then read everything", reading, reach=0.2)
        for name in (box, layered):
            holdfast.destroy(name)

    def _fork(self) -> Row:
        """A checkpoint restored into other sandboxes; beside the SDK's restore, which is all that it can do."""
        holdfast, backup = self._holdfast, self._backup
        awake, made = holdfast.new_name(), list[str]()
        holdfast.execute(awake, "true")

        def into_a_new_one() -> None:
            made.append(holdfast.new_name())
            holdfast.restore(made[-1], backup)

        def removed() -> None:
            while made:
                holdfast.destroy(made.pop())

        contestants = {
            "sdk": Contestant(lambda: self._sdk.restore(self._sdk_backup), after=self._sdk.remove_restored),
            "holdfast, awake sandbox": Contestant(
                lambda: holdfast.restore(awake, backup), prove=lambda _: self._same(holdfast.manifest(awake))
            ),
            "holdfast, new sandbox": Contestant(
                into_a_new_one, prove=lambda _: self._same(holdfast.manifest(made[0])), after=removed
            ),
            f"holdfast, {self._forks} new in one call": Contestant(
                lambda: made.extend(holdfast.fork(backup, self._forks)),
                prove=lambda _: self._same(holdfast.manifest(made[-1])),
                after=removed,
            ),
        }
        row = self._row("fork", contestants)
        holdfast.destroy(awake)
        return row

    def _is_whole(self, backup: Backup) -> None:
        assert self._holdfast.info(backup)["depth"] == 1, "the backup is not a full one"

    def _is_layer(self, backup: Backup) -> None:
        assert self._holdfast.info(backup)["depth"] > 1, "the backup is not an incremental one"

    def _proven(self, backup: Backup, files: str) -> None:
        """Restores a backup, and compares all files."""
        box = self._holdfast.new_name()
        self._holdfast.restore(box, backup)
        self._same(self._holdfast.manifest(box), files)
        self._holdfast.destroy(box)

    def _same(self, found: str, files: str | None = None) -> None:
        """Raises if other files are there than `files`, which are those of the directory by default."""
        assert found == (files or self._files), "other files are there than before"
