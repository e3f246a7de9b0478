"""Restores a backup, and kills itself before or after a step."""

from __future__ import annotations

import sys

from actors.models import DirectoryBackup
from tests.support.killing import act_at
from tests.support.sandboxes import from_description, restore

told, handle, mode, step, when = sys.argv[1:]
box = from_description(told).sandbox()
box.ownership.change(lambda state: state)
act_at(step, when)
restore(box, DirectoryBackup.model_validate_json(handle), mode=mode)
print("survived", flush=True)
