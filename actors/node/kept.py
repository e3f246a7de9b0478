"""The archives that the layers of one sandbox are mounted from: hard links, whatever the node's cache evicts.

Each is checked before anything is mounted from it, and looked at afterwards: an archive that has changed under a mount
may show what was never in the backup.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from actors.logs import log
from actors.node.errors import DamagedCopyError, NodeError
from actors.node.verified import SUFFIX, Stamp, Verified, stamp_of


class KeptArchives:
    """The folder with the links, one for each digest. Not thread-safe, but for `is_disturbed`."""

    def __init__(self, folder: Path, verified: Verified) -> None:
        self._folder = folder
        self._verified = verified
        self._mounted: dict[str, Stamp] = {}
        """The archives as they were checked, before they were mounted."""

    def path(self, sha256: str) -> Path:
        """Where the archive of a digest is, or should be."""
        return self._folder / f"{sha256}{SUFFIX}"

    def keep(self, archive: Path, sha256: str) -> Path:
        """Links an archive that is good, in place of one that is not; returns the link. Raises DamagedCopyError."""
        kept = self.path(sha256)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        try:
            self._verified.link(archive, sha256, kept)
        except FileExistsError:
            try:
                self._verified.check(kept, sha256)
            except DamagedCopyError:
                self._verified.replace(archive, sha256, kept)
        return self.check(sha256)

    def check(self, sha256: str) -> Path:
        """Sees to it that an archive can be mounted; from here on it is watched. Raises DamagedCopyError."""
        path = self.path(sha256)
        stamp = self._verified.check(path, sha256)
        self._mounted.setdefault(sha256, stamp)
        return path

    @property
    def is_in_use(self) -> bool:
        """Whether anything is mounted from them."""
        return bool(self._mounted)

    def is_disturbed(self) -> bool:
        """Whether an archive was written to, replaced, or is gone since it was checked and mounted.

        Costs a stat(2) for each, unless something has happened to it. Links that come and go are nothing.
        """
        return any(not self._is_as_mounted(sha256, stamp) for sha256, stamp in list(self._mounted.items()))

    def _is_as_mounted(self, sha256: str, mounted: Stamp) -> bool:
        path = self.path(sha256)
        try:
            found = stamp_of(path)
            if found == mounted:
                return True
            if found.has_content_of(mounted) and self._verified.check(path, sha256).has_content_of(mounted):
                if sha256 in self._mounted:
                    self._mounted[sha256] = found
                return True
        except (DamagedCopyError, OSError):
            pass
        return False

    def forget_mounts(self) -> None:
        """Nothing is mounted from them any more."""
        self._mounted.clear()

    def drop_all_but(self, used: Collection[str]) -> None:
        """Removes the links to archives whose digests are not among these."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            if path.stem not in used:
                self._mounted.pop(path.stem, None)
                try:
                    self._verified.unlink(path, path.stem)
                except (OSError, NodeError) as e:  # it goes the next time
                    log.warning("archive_left_behind", error=type(e).__name__)
