"""Creates a backup while a command runs; to be killed meanwhile."""

from __future__ import annotations

import sys

from tests.support.sandboxes import backup, command, from_description

box = from_description(sys.argv[1]).sandbox("crashing")
box.ownership.change(lambda state: state)
with command(box, "echo started; exec sleep 1000"):
    backup(box)
