"""Creates a layer, writes to it, and kills itself."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from actors.node.drivers import Driver
from actors.node.layers import Layers

root, lowers, archive, sha256, driver = sys.argv[1:]
layers = Layers(Path(root), Path(lowers), driver=Driver(driver), on_lost=lambda layer: None)
layer = layers.create(Path(archive), sha256)
(layer.merged / "written").write_text("before the crash")
print(layer.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
