"""kill -9 before and after every step of a run of retention, while the sandbox sleeps; the next run finishes it."""

from __future__ import annotations

import signal
import uuid

import pytest

from actors.models import Retention, RetentionRun
from actors.sandbox.steps import RetentionStep
from actors.service.facade import Service
from tests.support.sandboxes import Node, backup, crash, described, restore, sh

RETAIN = "tests.support.programs.retention_killed_at_a_step"


@pytest.mark.parametrize(
    ("any_store", "when"), [("rclone", "before"), ("rclone", "after"), ("moto", "after")], indirect=["any_store"]
)
@pytest.mark.parametrize("step", RetentionStep)
def test_a_crash_at_any_step_of_retention_loses_no_kept_backup(any_store: Node, step: RetentionStep, when: str) -> None:
    node, name = any_store, f"retained-{uuid.uuid4().hex[:8]}"
    box = node.sandbox(name)
    made = []
    for number in range(4):
        sh(box, f"echo {number} > number")
        made.append(backup(box))
    box.close()
    service = Service(node.config, node.catalog(), awake=lambda tenant, sandboxes: ())
    service.retention.set("default", name, Retention(keep_last=1, pinned=[made[0].id]))
    before = node.keys()

    ended = crash(RETAIN, described(node), name, step, when)
    assert ended.status == -signal.SIGKILL and "survived" not in ended.stdout, ended

    kept = {made[0].id, made[3].id}
    left = {row.id for row in node.catalog().all_records("default", name)}
    assert left == ({row.id for row in made} if (step, when) != (RetentionStep.DELETE, "after") else kept)
    report = service.retention.run("default", name, RetentionRun())
    assert {row.id for row in report.kept} == kept
    gone = {key for key in before if any(row.id in key for row in made[1:3])}
    assert before - node.keys() == gone and len(gone) == 8
    box = node.sandbox(name)
    for number in (0, 3):
        restore(box, made[number])
        assert sh(box, "cat number") == f"{number}\n"
