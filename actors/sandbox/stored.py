"""An archive that is in the bucket, and what a backup's metadata says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.node.packing import PackedArchive
from actors.node.survey import Survey
from actors.node.verified import Stamp
from actors.sandbox.increments import Increment
from storage.digests import UploadedArchive
from storage.metadata import INCREMENTAL_VERSION, NotKept, StoredLayer


@dataclass(frozen=True, slots=True)
class Stored:
    """A full archive; with `increment`, the layer above those that are held."""

    made: PackedArchive
    stamp: Stamp
    """The file's stamp from before its digest was computed."""
    uploaded: UploadedArchive | StoredLayer
    increment: Increment | None = None

    @property
    def not_kept(self) -> NotKept:
        """Counts of what the archive could not hold."""
        return not_kept(self.made.found)

    def fields(self) -> dict[str, Any]:
        """The fields of the metadata that describe the archive.

        Files are counted only in a full archive: a layer does not tell what is in those below.
        """
        found, uploaded = self.made.found, self.uploaded
        fields: dict[str, Any] = {
            "size_bytes": uploaded.size_bytes,
            "sha256": uploaded.sha256,
            "part_bytes": uploaded.part_bytes,
            "max_name_bytes": found.max_name_bytes,
            "not_kept": self.not_kept,
        }
        if isinstance(uploaded, UploadedArchive):
            return fields | {
                "version": 1,
                "parts": [part.sha256 for part in uploaded.parts],
                "etag": uploaded.etag,
                "files": found.files,
                "inodes": found.inodes,
                "source_bytes": found.source_bytes,
            }
        assert self.increment is not None
        parent = self.increment.parent
        return fields | {
            "version": INCREMENTAL_VERSION,
            "parts": uploaded.parts,
            "max_name_bytes": max(found.max_name_bytes, parent.max_name_bytes or 0),
            "layers": self.increment.layers.layers,
            "parent": parent.id,
        }


def not_kept(found: Survey) -> NotKept:
    """The counts of a survey, as a backup's metadata has them."""
    return NotKept(
        sockets=found.sockets,
        acls=found.acls,
        other_xattrs=found.other_xattrs,
        devices=found.devices or None,
        far_times=found.far_times or None,
        flags=found.flags or None,
    )
