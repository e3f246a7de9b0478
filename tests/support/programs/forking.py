"""Makes child processes until it is refused, and prints their number. Runs in a sandbox."""

from __future__ import annotations

import os
import signal

children: list[int] = []
try:
    while len(children) < 3000:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except OSError:
    pass
print(len(children), flush=True)
for pid in children:
    os.kill(pid, signal.SIGKILL)
