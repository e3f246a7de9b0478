"""Runs programs in their own namespaces, like in a container, but without an image."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.service import PROJECT

_ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "LC_ALL": "C.UTF-8"}
_NAMESPACES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
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
"""A shell program that masks the parts of /proc that Docker and containerd mask.

Source: MaskedPaths and ReadonlyPaths of moby's oci/defaults.go.
"""


def beside_a_process_1_that_reaps_nothing(program: str, *args: str) -> str:
    """Runs a Python module in a pid namespace whose process 1 never reaps, as in many containers; returns its output.

    The program must succeed.
    """
    shell = '{ "$@"; echo "status $?"; } & exec sleep 1000'
    argv = [*_NAMESPACES, "sh", "-c", shell, "sh", sys.executable, "-m", program, *args]
    said = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=PROJECT, env=_ENVIRONMENT) as first:
        try:
            assert first.stdout is not None
            for line in first.stdout:
                said.append(line)
                if line.startswith("status "):
                    break
        finally:
            first.kill()
    assert said and said.pop() == "status 0\n", said
    return "".join(said)


def in_pid_namespace(
    program: str, *args: str, before: str = "", timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Runs a Python module as process 1 of a pid namespace, with its own /proc.

    Args:
        before: shell commands that run first, in the same namespaces.
    """
    shell = f'set -e\n{before}\nexec "$@"'
    return subprocess.run(
        [*_NAMESPACES, "sh", "-c", shell, "sh", sys.executable, "-m", program, *args],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=PROJECT,
        env=_ENVIRONMENT,
    )
