"""Creates a backup, and kills itself before its nth request to the store; prints its requests if it made fewer."""

from __future__ import annotations

import sys

from storage.s3 import S3ObjectStore
from tests.support.killing import Counted
from tests.support.s3 import FAST
from tests.support.sandboxes import backup, from_description

told, directory, nth = sys.argv[1:]
node = from_description(told)
store = Counted(S3ObjectStore(node.bucket, transfer=FAST))
box = node.sandbox("crashing", catalog=node.catalog(store))
box.ownership.change(lambda state: state)
store.begin(int(nth))
backup(box, directory)
print("survived", len(store.names), *store.names, sep="\n", flush=True)
