"""The node's identity: a unique name of its data folder, by which a sandbox's state says which node has its files.

With a wrong identity all sandboxes of the node would seem to be on a lost node. So it is stored twice: in `<root>/id`,
and beside that folder in `<root>.id`, with a checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from pathlib import Path

from actors.logs import log
from actors.node.errors import CorruptRecordError
from actors.node.records import write_whole

_MADE = re.compile(r"[0-9a-f]{32}")
_GIVEN = re.compile(r"[!-~]([ -~]{0,62}[!-~])?")
"""An identity that an operator chose."""


def identity(root: Path) -> str:
    """Returns the identity of the node whose files are below `root`. The first call, in any process, makes it.

    Raises:
        CorruptRecordError: the identity and its copy are damaged.
    """
    file, copy = root / "id", root.with_name(f"{root.name}.id")
    if not file.exists() and not copy.exists():
        _make(root, file)
    found, copied = _found(file), _copied(copy)
    if copied is not None and found != copied and (found is None or _MADE.fullmatch(copied)):
        log.error("identity_mended", identity=copied)
        write_whole(file, copied.encode())
        return copied
    if found is None:
        raise CorruptRecordError(
            "The node's identity cannot be read.",
            hint="Write it back into node/id: it is `node` in the state of the sandboxes that were here.",
        )
    if found != copied:
        write_whole(copy, f"{found} {_checksum(found)}".encode())
    return found


def _make(root: Path, file: Path) -> None:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = root / f".id-{uuid.uuid4().hex}"
    write_whole(fresh, uuid.uuid4().hex.encode())
    with contextlib.suppress(FileExistsError):
        os.link(fresh, file)
    fresh.unlink()


def _found(file: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = file.read_text().strip()
        return text if _GIVEN.fullmatch(text) else None
    return None


def _copied(copy: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text, _, checksum = copy.read_text().rpartition(" ")
        return text if checksum == _checksum(text) else None
    return None


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
