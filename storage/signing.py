"""The signature of a backup's metadata: it proves that this service wrote it, and that nobody has changed it since.

It is an HMAC-SHA256 under a key derived from the operator's, over all fields of the document except the signature. The
first key signs, and all of them verify, so the operator can replace a key and still trust what the earlier one signed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from pydantic import SecretStr

from storage.metadata import BackupRecord, load

_KEY_PURPOSE = b"holdfast backup metadata, version 1"


def sign(record: BackupRecord, key: SecretStr) -> BackupRecord:
    """Returns the record with our signature: it says that this service wrote it, so its digests can be trusted."""
    complete = load(BackupRecord, record.to_json())  # so that all its fields are set, as when it is read again
    return complete.model_copy(update={"signature": _signature(complete, key)})


def verify(record: BackupRecord, keys: Sequence[SecretStr]) -> bool:
    """True if one of `keys` signed exactly this record. Takes the same time for every wrong signature."""
    given = (record.signature or "").encode("utf-8", "replace")
    return any(hmac.compare_digest(given, _signature(record, key).encode()) for key in keys)


def _signature(record: BackupRecord, key: SecretStr) -> str:
    # The key is derived for this purpose only, so that the operator's one secret can serve other purposes too.
    derived = hmac.digest(key.get_secret_value().encode(), _KEY_PURPOSE, hashlib.sha256)
    return hmac.new(derived, record.said(without="signature"), hashlib.sha256).hexdigest()
