"""Restores a backup, and kills itself after the first range of the archive is downloaded."""

from __future__ import annotations

import sys

from actors.models import DirectoryBackup
from storage.s3 import S3ObjectStore
from tests.support.killing import Interrupted
from tests.support.s3 import FAST
from tests.support.sandboxes import from_description, restore

node = from_description(sys.argv[1])
node.adjust(transfer=FAST.model_copy(update={"concurrency": 1}))
store = Interrupted(S3ObjectStore(node.bucket, transfer=FAST), "presign_get", "before", 2)
box = node.sandbox(catalog=node.catalog(store))
restore(box, DirectoryBackup.model_validate_json(sys.argv[2]))
print("survived", flush=True)
