"""Wakes a sandbox whose node is lost, and kills itself before or after a call of a method."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from actors.sandbox.recovery import DirectoryRecovery
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.restored_record import RestoredRecord
from actors.sandbox.wake_steps import WakeSteps
from actors.state.ownership import Ownership
from tests.support.sandboxes import from_description

told, name, place, method, number, when = sys.argv[1:]
kinds: dict[str, type] = {"ownership": Ownership, "recovery": DirectoryRecovery, "restored": RestoredDirectories}
kinds |= {"record": RestoredRecord, "wake_steps": WakeSteps}
kind = kinds[place]
real, calls = getattr(kind, method), list[str]()


def killing(self: object, *args: Any, **options: Any) -> Any:
    calls.append(method)
    if len(calls) == int(number) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(self, *args, **options)
    if len(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return result


setattr(kind, method, killing)
box = from_description(told).sandbox(name, awake=False, lost=["a"])
print("ready", flush=True)
box.wake()
print("survived", flush=True)
