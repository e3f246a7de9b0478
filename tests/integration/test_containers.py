"""Processes under the conditions of a container: its own pid namespace, a /proc with covered parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.namespaces import MASKS, beside_a_process_1_that_reaps_nothing, in_pid_namespace
from tests.support.sandboxes import UID, Node, described

BOXES = "tests.support.programs.boxes_of_process_1"


@pytest.mark.parametrize("before", ["", MASKS], ids=["a whole /proc", "a /proc with covered parts"])
def test_every_box_is_built_in_a_pid_namespace_of_few_processes(tmp_path: Path, before: str) -> None:
    ended = in_pid_namespace(BOXES, str(tmp_path), str(UID), before=before)
    assert ended.returncode == 0, ended.stderr


MANY = "tests.support.programs.many_commands_and_backups"


def test_fifty_commands_and_backups_leave_no_zombie_where_process_1_reaps_nothing(node: Node) -> None:
    assert beside_a_process_1_that_reaps_nothing(MANY, described(node)).splitlines()[-1] == "{} 0"
