"""The archives from which one sandbox's layers are mounted: hard links, so that an eviction from the cache is harmless.

Each is checked before it is mounted, and watched afterwards: if an archive changes under a mount, the layer may show
content that was never in the backup.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from actors.logs import log
from actors.node.errors import DamagedCopyError, NodeError
from actors.node.verified import SUFFIX, Stamp, Verified, stamp_of


class KeptArchives:
    """The folder with the links, one for each digest. Not thread-safe, except for `is_disturbed`."""

    def __init__(self, folder: Path, verified: Verified) -> None:
        self._folder = folder
        self._verified = verified
        self._mounted: dict[str, Stamp] = {}
        """The stamp of each archive from its check before the mount, by digest."""

    def path(self, sha256: str) -> Path:
        """The path for the archive with a digest. It need not exist."""
        return self._folder / f"{sha256}{SUFFIX}"

    def keep(self, archive: Path, sha256: str) -> Path:
        """Links a good archive, and replaces a damaged link. Returns the link's path. Raises DamagedCopyError."""
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
        """Checks an archive before its mount, and watches it from now on. Raises DamagedCopyError."""
        path = self.path(sha256)
        stamp = self._verified.check(path, sha256)
        self._mounted.setdefault(sha256, stamp)
        return path

    @property
    def is_in_use(self) -> bool:
        """True if an archive is mounted, or was checked for a mount."""
        return bool(self._mounted)

    def is_disturbed(self) -> bool:
        """Tells whether an archive was written to, replaced or removed since its check.

        Costs one stat(2) for each archive that has not changed. New and removed links do not count as changes.
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
        """Stops watching all archives, because none is mounted any more."""
        self._mounted.clear()

    def drop_all_but(self, used: Collection[str]) -> None:
        """Removes the links to all archives whose digests are not in `used`."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            if path.stem not in used:
                self._mounted.pop(path.stem, None)
                try:
                    self._verified.unlink(path, path.stem)
                except (OSError, NodeError) as e:  # the next call tries again
                    log.warning("archive_left_behind", error=type(e).__name__)
