"""A directory restored as an overlay is a mount point: unlike a copy, it cannot be removed or renamed."""

from __future__ import annotations

import pytest

from actors.errors import NotARegularFileError
from actors.models import RestoreMode
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from tests.support.sandboxes import Node, backup, restore, run, sh, write

WAYS = ("rmdir data", "rm -rf data", "mv data moved", "mkdir other; mv -T other data", "mv -T data existing")


@pytest.fixture
def box(node: Node) -> LocalSandbox:
    box = node.sandbox()
    sh(box, "mkdir -p data/inner existing; echo 1 > data/inner/file")
    restore(box, backup(box, "/workspace/data"))
    sh(box, "rm -r data/inner")
    return box


def test_the_error_of_our_delete_route_advises_a_copy(box: LocalSandbox) -> None:
    with pytest.raises(NotARegularFileError, match="restored") as raised:
        box.delete_file("/workspace/data")
    assert '"mode": "copy"' in (raised.value.hint or "")
    with pytest.raises(NotARegularFileError, match="is a directory"):
        write(box, "/workspace/data", "a file in its place")
    assert sh(box, "ls") == "data\nexisting\n"


@pytest.mark.parametrize("script", WAYS)
@pytest.mark.parametrize("driver", [Driver.KERNEL], indirect=True)
def test_a_command_that_removes_an_overlay_gets_device_busy(box: LocalSandbox, script: str) -> None:
    ended = run(box, "sh", "-c", script)
    assert ended.exit_code != 0 and b"Device or resource busy" in ended.stderr
    assert "data" in sh(box, "ls")


@pytest.mark.parametrize("script", WAYS)
@pytest.mark.parametrize("driver", [Driver.KERNEL], indirect=True)
def test_a_copy_can_be_removed_renamed_and_replaced(node: Node, script: str) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p data existing; echo 1 > data/file")
    restore(box, backup(box, "/workspace/data"), mode=RestoreMode.COPY)
    sh(box, f"rm data/file; {script}")
    restore(box, backup(box, "/workspace"), mode=RestoreMode.COPY)


def test_a_copy_in_the_place_of_an_overlay_can_be_deleted(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir data")
    handle = backup(box, "/workspace/data")
    restore(box, handle)
    restore(box, handle, mode=RestoreMode.COPY)
    box.delete_file("/workspace/data")
    assert sh(box, "ls") == ""
