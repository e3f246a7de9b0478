"""Restores a backup in both modes, sleeps in the bucket, and wakes."""

from __future__ import annotations

import sys

from tests.support.sandboxes import backup, from_description, restore, sh

with from_description(sys.argv[1]) as node:
    box = node.sandbox()
    sh(box, "echo 1 > file")
    handle = backup(box)
    for mode in ("overlay", "copy"):
        sh(box, "echo 2 > file")
        restore(box, handle, mode=mode)
        print(f"{mode} {sh(box, 'cat file')}", file=sys.stderr, flush=True)
    box.sleep(box.back_up_for_sleep())
    print(f"woken {sh(node.sandbox(), 'cat file')}", file=sys.stderr, flush=True)
