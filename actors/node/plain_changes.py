"""Finds what was changed in a directory of plain files, by a comparison with fingerprints, and records new ones."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from actors.node.errors import NoLayerError
from actors.node.fingerprints import DIRECTORY, Clock, Fingerprints, Header, Recorder, check_clock, check_file_system
from actors.node.staged import Key, Stage, StagedDirectory, identity_of
from actors.node.verified import boot_id


@dataclass(frozen=True, slots=True)
class _Walk:
    clock: Clock
    before: Fingerprints | None
    recorder: Recorder
    wanted: Collection[Key]


@dataclass(slots=True)
class PlainChanges:
    """Goes along with a walk over a directory (`survey.Follower`). Stages what was changed, if there is a stage."""

    _walk: _Walk
    _staged: StagedDirectory | None
    _path: str
    _before: dict[str, bytes]
    """The recorded states, and the directory's own under "."; empty if there are none."""
    _after: dict[str, bytes] = field(default_factory=dict)

    def choose(self, names: list[str]) -> list[str]:
        """Chooses all names."""
        return names

    def keep(self, fd: int, name: str, found: os.stat_result) -> bool:
        """Records an entry of the directory `fd`, and stages it unless its state is the recorded one.

        Returns True if it is. Attributes and flags are then the recorded ones, too: a change of either sets the ctime.
        """
        clock = self._walk.clock
        state = clock.state(found)
        self._after[name] = clock.lasting(found, state)
        if self._staged is None:
            return False
        is_known = self._before.get(name) == state
        if not is_known or (found.st_nlink > 1 and identity_of(found) in self._walk.wanted):
            self._staged.add(fd, name, found)
        return is_known

    def below(self, name: str) -> PlainChanges:
        """The follower for the subdirectory `name`."""
        path = f"{self._path}/{name}"
        before: dict[str, bytes] = {}
        if self._walk.before is not None and self._before.get(name) == DIRECTORY:
            before = self._walk.before.directory(path)
        self._after[name] = DIRECTORY
        staged = None if self._staged is None else self._staged.below(name)
        return PlainChanges(self._walk, staged, path, before)

    def end(self, fd: int) -> None:
        """Records the directory itself, and stages it if it was changed, with whiteouts for what is gone."""
        found = os.fstat(fd)
        state = self._walk.clock.state(found)
        self._walk.recorder.add(self._path, self._walk.clock.lasting(found, state), self._after)
        if self._staged is None:
            return
        for name in sorted(name for name in self._before if name not in self._after and name != "."):
            self._staged.hide(name)
        if self._before.get(".") != state:
            self._staged.make()
        self._staged.finish(fd)

    def close(self) -> None:
        """Does nothing: nothing was opened for the directory."""


def changes_since(
    before: Fingerprints | None, stage: Stage | None, recorder: Recorder, clock: Clock, *, wanted: Collection[Key] = ()
) -> PlainChanges:
    """The follower for the root: records fingerprints, and with a stage also stages what was changed since `before`."""
    walk = _Walk(clock, before, recorder, wanted)
    root = None if stage is None else StagedDirectory(stage)
    if root is not None:
        root.make()
    return PlainChanges(walk, root, "", {} if before is None else before.directory(""))


class Recording:
    """The fingerprints of a directory that are recorded while it is archived, for the backup after this one."""

    def __init__(self, path: Path, uid: int) -> None:
        """`path` is a file to be made, on the file system of the place where `commit` puts it.

        `uid` is the user of the sandbox's processes.
        """
        self._path = path
        self._uid = uid
        self._recorder: Recorder | None = None
        self._root: os.stat_result | None = None
        self._lead_ns = 0

    def follow(
        self, fd: int, before: Fingerprints | None, stage: Stage | None, wanted: Collection[Key] = ()
    ) -> PlainChanges:
        """The follower for a walk over the directory `fd`; the last one's fingerprints count.

        Raises:
            NoLayerError: fingerprints of this directory would prove nothing, or cannot be written.
        """
        self.close()
        check_file_system(fd)
        self._root = os.fstat(fd)
        clock = Clock(fd, self._uid)
        self._lead_ns = clock.lead_ns
        try:
            self._recorder = Recorder(self._path)
        except OSError as e:
            raise NoLayerError(f"fingerprints cannot be written ({e.strerror})") from e
        return changes_since(before, stage, self._recorder, clock, wanted=wanted)

    def find_follower(self, fd: int) -> PlainChanges | None:
        """The follower for a walk that stages nothing; None if fingerprints would prove nothing."""
        try:
            return self.follow(fd, None, None)
        except NoLayerError:
            return None

    def commit(self, backup_id: str, target: Path) -> None:
        """Puts the fingerprints in their place, after the backup exists; removes older ones if there are none.

        Raises OSError.
        """
        if self._recorder is None or self._root is None:
            target.unlink(missing_ok=True)
            return
        header = Header(self._root.st_dev, self._root.st_ino, backup_id, boot_id(), self._lead_ns)
        self._recorder.finish(header, target)

    def close(self) -> None:
        """Closes the file. Repeatable."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None


@dataclass(frozen=True, slots=True)
class RecordedFiles:
    """The files of an earlier backup, as a base (`changes.Base`): their fingerprints tell what was changed."""

    before: Fingerprints
    recording: Recording

    @property
    def needs_every_file(self) -> bool:
        """True: each file is compared with its fingerprint."""
        return True

    def check(self, fd: int) -> None:
        """Raises NoLayerError if the directory is another one than the recorded one, or its times prove nothing."""
        found, header = os.fstat(fd), self.before.header
        if (found.st_dev, found.st_ino) != (header.device, header.inode):
            raise NoLayerError("the directory is not the one that was backed up before")
        check_clock(header)

    def follower(self, fd: int, stage: Stage, *, everywhere: bool, wanted: Collection[Key]) -> PlainChanges:
        """The follower of a walk over the directory; it visits all files in any case."""
        return self.recording.follow(fd, self.before, stage, wanted)
