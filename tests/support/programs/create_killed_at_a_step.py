"""Creates a backup, and kills itself before or after a step."""

from __future__ import annotations

import sys

from actors.models import BackupOptions
from tests.support.killing import act_at
from tests.support.sandboxes import from_description

told, directory, key, step, when = sys.argv[1:]
box = from_description(told).sandbox("crashing")
box.ownership.change(lambda state: state)
act_at(step, when)
box.create_backup(BackupOptions(dir=directory), idempotency_key=key)
print("survived", flush=True)
