"""Creates a backup, and kills itself before or after a call to the store.

It sends one part at a time, so that the earlier ones are in the bucket when it dies at a later one.
"""

from __future__ import annotations

import sys

from storage.s3 import S3ObjectStore
from tests.support.killing import Interrupted
from tests.support.s3 import FAST
from tests.support.sandboxes import backup, from_description

told, directory, method, when, nth, of = sys.argv[1:]
node = from_description(told)
node.adjust(transfer=FAST.model_copy(update={"concurrency": 1}))
store = Interrupted(S3ObjectStore(node.bucket, transfer=FAST), method, when, int(nth), of=of)
box = node.sandbox("crashing", catalog=node.catalog(store))
box.ownership.change(lambda state: state)
backup(box, directory)
print("survived", flush=True)
