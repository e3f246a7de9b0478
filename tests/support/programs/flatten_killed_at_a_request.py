"""Flattens a backup, and kills itself before or after a call to the store."""

from __future__ import annotations

import sys

from actors.service.flattening import flattening
from storage.s3 import S3ObjectStore
from tests.support.killing import Interrupted
from tests.support.s3 import FAST
from tests.support.sandboxes import from_description

told, backup_id, method, of, when = sys.argv[1:]
node = from_description(told)
store = Interrupted(S3ObjectStore(node.bucket, transfer=FAST), method, when, of=of)
flattening(node.config, node.catalog(store)).flatten("default", backup_id)
print("survived", flush=True)
