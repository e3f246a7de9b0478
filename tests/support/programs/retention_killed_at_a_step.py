"""Applies a sandbox's retention policy, and kills itself before or after a step."""

from __future__ import annotations

import sys

from actors.models import RetentionRun
from actors.service.facade import Service
from tests.support.killing import act_at
from tests.support.sandboxes import from_description

told, sandbox, step, when = sys.argv[1:]
node = from_description(told)
service = Service(node.config, node.catalog(), awake=lambda tenant, sandboxes: ())
act_at(step, when)
service.retention.run("default", sandbox, RetentionRun())
print("survived", flush=True)
