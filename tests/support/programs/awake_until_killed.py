"""Has a sandbox with a restored directory awake, and waits to be killed."""

from __future__ import annotations

import sys

from tests.faults.test_dependencies import served
from tests.support.sandboxes import from_description

box = from_description(sys.argv[1]).sandbox()
served(box)
print("ready", flush=True)
sys.stdin.read()
