"""Sleeps in the bucket, and kills itself before it removes the files."""

from __future__ import annotations

import os
import signal
import sys

from actors.sandbox.teardown import Teardown
from tests.support.sandboxes import from_description

box = from_description(sys.argv[1]).sandbox(sys.argv[2])
in_bed = box.back_up_for_sleep()


def dies(self: Teardown) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


Teardown.remove_files = dies  # type: ignore[method-assign]
print("ready", flush=True)
box.sleep(in_bed)
