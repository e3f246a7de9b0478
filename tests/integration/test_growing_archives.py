"""Parts are sent while the real mksquashfs writes; it cuts the archive back and goes on where it finds a duplicate."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from storage.s3 import S3ObjectStore
from storage.transfer import GrowingUpload, upload
from tests.support.mount_leaks import wait_until
from tests.support.s3 import FAST, FaultProxy, fault_proxy, moto_s3

KEY = "backups/5d0f3f0e-4f5e-4d0f-9c39-8f4b9e3f3c55/data.sqsh"
LARGE_BYTES = 40 * 2**20
"""More than mksquashfs holds back, with the memory that it gets here."""


def wait_for_parts(proxy: FaultProxy, count: int) -> None:
    assert wait_until(lambda: proxy.count("part") >= count), proxy.seen


def written_in_steps(tree: Path, archive: Path, proxy: FaultProxy) -> tuple[int, int]:
    """Archives the tree, and stops the tool whenever a part may be sent, until it is.

    Returns the size that the archive had when it was cut back, and the size to which it was cut; zeros if it was not.
    """
    argv = [
        *("nice", "-n", "19"),  # so that it does not run while this process, which watches it, waits for a processor
        "mksquashfs",
        str(tree),
        str(archive),
        "-noappend",
        "-comp",
        "zstd",
        "-Xcompression-level",
        "1",
        "-b",
        "256K",
    ]
    argv += ["-quiet", "-no-progress", "-mem", "32M", "-processors", "1"]
    sent, last, cut = 0, 0, (0, 0)
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as tool:
        while tool.poll() is None:
            size = archive.stat().st_size if archive.exists() else 0
            if size < last:
                cut = (last, size)
            if last < size and size // FAST.part_bytes - 2 > sent:
                os.kill(tool.pid, signal.SIGSTOP)
                sent = archive.stat().st_size // FAST.part_bytes - 2
                wait_for_parts(proxy, sent)
                os.kill(tool.pid, signal.SIGCONT)
            last = size
    assert tool.returncode == 0
    return cut


@pytest.mark.parametrize("is_duplicate", [True, False])
def test_an_archive_is_sent_as_it_ends_also_if_mksquashfs_cuts_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_duplicate: bool
) -> None:
    monkeypatch.setattr("storage.growing._SILENCE_S", 60.0)  # a busy machine is no silent store
    tree, archive = tmp_path / "tree", tmp_path / "archive"
    tree.mkdir()
    made = random.Random(4)
    for name in "abc":
        (tree / name).write_bytes(made.randbytes(LARGE_BYTES if name != "c" else LARGE_BYTES // 2))
    if is_duplicate:
        (tree / "b").write_bytes((tree / "a").read_bytes())
    cancelled = threading.Event()
    with moto_s3() as config, fault_proxy(config) as (proxy, through):
        store = S3ObjectStore(through, transfer=FAST)
        with GrowingUpload(store, KEY, config=FAST, begin=lambda: None, cancelled=cancelled) as ahead:
            ahead.follow(archive)
            before, after = written_in_steps(tree, archive, proxy)
        uploaded = upload(
            store, KEY, archive, config=FAST, progress=lambda count: None, cancelled=cancelled, sent=ahead.sent
        )
        assert (before > after + 3 * FAST.part_bytes) == is_duplicate
        assert ahead.sent is not None
        assert len(ahead.sent.parts) >= 5
        assert proxy.count("create") == 1 + is_duplicate
        assert is_duplicate or proxy.count("part") == len(uploaded.parts)
        content = archive.read_bytes()
        assert store.get(KEY, max_bytes=len(content)).data == content
        store.delete(KEY)
