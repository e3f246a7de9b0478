"""Creates and discards layers over one archive."""

from __future__ import annotations

import sys
from pathlib import Path

from actors.node.drivers import Driver
from actors.node.layers import Layers

root, lowers, archive, sha256 = sys.argv[1:]
layers = Layers(Path(root), Path(lowers), driver=Driver.KERNEL, on_lost=lambda layer: None)
for _ in range(5):
    layer = layers.create(Path(archive), sha256)
    assert (layer.merged / "first").read_text() == "linked"
    layers.discard(layer)
