"""Programs in namespaces of their own, as a container has them, without a container's image."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).parents[2]
MASKS = """
for folder in /proc/acpi /proc/scsi; do
    if [ -d $folder ]; then mount -t tmpfs -o ro none $folder; fi
done
for file in /proc/kcore /proc/keys /proc/timer_list; do
    if [ -e $file ]; then mount --bind /dev/null $file; fi
done
for part in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger; do
    if [ -e $part ]; then mount --bind $part $part; mount -o remount,bind,ro $part; fi
done
"""
"""A shell's program: covers the parts of /proc that Docker and containerd cover.

Source: MaskedPaths and ReadonlyPaths of moby's oci/defaults.go.
"""


def in_pid_namespace(
    program: str, *args: str, before: str = "", env: Mapping[str, str] | None = None, timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Runs a Python program as process 1 of a pid namespace, with a /proc of its own.

    Args:
        before: a shell's program that runs in the namespaces first, and whose shell becomes the program.
    """
    shell = f'set -e\n{before}\nexec "$@"'
    return subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
         "sh", "-c", shell, "sh", sys.executable, "-c", program, *args],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "LC_ALL": "C.UTF-8", **(env or {})},
    )  # fmt: skip
