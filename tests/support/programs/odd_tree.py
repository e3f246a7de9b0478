"""Makes an interesting tree; `trees.py` has to be beside this file. Runs in a sandbox."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

trees = importlib.import_module("trees")
trees.make_interesting_tree(Path("/workspace/odd"), 1000, max_name_bytes=int(sys.argv[1]))
