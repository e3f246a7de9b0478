"""The signature of a backup's metadata: it proves that this service wrote it, and that nobody has changed it since.

HMAC-SHA256 under a key derived from the operator's, over everything that the document says but the signature itself.
The first key signs, and all of them verify, so that a key can be replaced without losing what the earlier one signed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from pydantic import SecretStr

from storage.metadata import BackupRecord, load

_KEY_PURPOSE = b"holdfast backup metadata, version 1"


def sign(record: BackupRecord, key: SecretStr) -> BackupRecord:
    """The same record with our signature: it says that this service wrote it, so its digests can be trusted."""
    complete = load(BackupRecord, record.to_json())  # so that all it has is set, as when it is read again
    return complete.model_copy(update={"signature": _signature(complete, key)})


def verify(record: BackupRecord, keys: Sequence[SecretStr]) -> bool:
    """Whether one of `keys` signed exactly this record. Takes the same time for every wrong signature."""
    given = (record.signature or "").encode("utf-8", "replace")
    return any(hmac.compare_digest(given, _signature(record, key).encode()) for key in keys)


def _signature(record: BackupRecord, key: SecretStr) -> str:
    # A key of its own for this purpose, so that the operator's one secret can serve others too.
    derived = hmac.digest(key.get_secret_value().encode(), _KEY_PURPOSE, hashlib.sha256)
    return hmac.new(derived, record.said(without="signature"), hashlib.sha256).hexdigest()
