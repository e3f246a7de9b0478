"""A sandbox's life: wake, crash, recovery of its folder, destruction; its transfers, commands and lost daemons."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from actors.config import ExecLimits
from actors.errors import (
    ExecOutputLimitError,
    ExecStoppedError,
    ExecTimeoutError,
    FileNotFoundInSandboxError,
    HoldfastError,
    InvalidRequestError,
    MountLostError,
    NotARegularFileError,
    PathForbiddenError,
    SandboxUnavailableError,
)
from actors.models import CommandLimits, ExecRequest, RestoreMode
from actors.node import mountinfo
from actors.node.cgroup import Cgroup, Limits, announce_entry
from actors.node.drivers import Driver
from actors.node.hierarchies import Hierarchies
from actors.sandbox.facade import LocalSandbox
from storage import keys
from tests.support.control_groups import pids_in
from tests.support.held_store import AwayStore
from tests.support.mount_leaks import children, open_files, wait_until
from tests.support.sandboxes import (
    Background,
    Node,
    backup,
    command,
    crash,
    described,
    read,
    restore,
    run,
    sh,
    write,
)

CRASH = "tests.support.programs.killed_over_layers"


def test_a_crashed_sandbox_wakes_with_every_write(node: Node) -> None:
    ended = crash(CRASH, described(node))
    assert ended.status == -signal.SIGKILL, ended.stderr
    box = node.sandbox()
    assert sh(box, "cat data/c data/inner/b data/inner/d; ls data data/inner") == (
        "3\n2\n4\ndata:\nc\ninner\n\ndata/inner:\nb\nd\n"
    )
    assert [entry.dir for entry in box.info().restored] == ["/workspace/data", "/workspace/data/inner"]
    assert box.info().commands == 0


@pytest.mark.parametrize("ended", ["the older", "the younger"])
def test_a_sandbox_survives_the_end_of_another_over_an_identical_archive(kernel_node: Node, ended: str) -> None:
    one, other = kernel_node.sandbox("box"), kernel_node.sandbox("other")
    sh(one, "mkdir data; echo original > data/file")
    twins = [backup(one, "/workspace/data") for _ in range(2)]
    assert len({path.stem.partition("_")[2] for path in kernel_node.layout.cache.glob("*.sqsh")}) == 1
    for box, handle in zip((one, other), twins, strict=True):
        restore(box, handle)
        sh(box, "echo later > data/later")
    first, second = (one, other) if ended == "the older" else (other, one)
    first.destroy()
    second.close()
    assert sh(second, "cat data/*") == "original\nlater\n"
    restore(second, twins[0])
    assert wait_until(lambda: len(os.listdir(kernel_node.home(second.id) / "layers")) == 1)
    second.close()
    assert sh(second, "cat data/*") == "original\n"
    second.destroy()
    assert mountinfo.mounts_under(kernel_node.data_dir) == []


def test_a_wake_fails_while_a_mount_is_in_use_and_works_afterwards(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.sandbox.overlays._UNMOUNT_S", 0.2)
    first = node.sandbox()
    write(first, "/workspace/file", "kept")
    restore(first, backup(first))
    with (node.tree(first) / "workspace" / "file").open():
        second = node.sandbox(awake=False)
        with pytest.raises(SandboxUnavailableError) as raised:
            second.wake()
        assert raised.value.context["outcome"] == "not_executed"
        assert str(node.data_dir) not in str(raised.value)
    first.close()
    assert read(second, "/workspace/file") == b"kept"


@pytest.mark.parametrize("fault", ["no layer", "in use"])
def test_the_log_says_why_a_sandbox_could_not_wake(
    kernel_node: Node, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("actors.sandbox.overlays._UNMOUNT_S", 0.2)
    first = kernel_node.sandbox()
    write(first, "/workspace/file", "kept")
    restore(first, backup(first))
    (layer,) = (kernel_node.home("box") / "layers").iterdir()
    with ExitStack() as faults:
        if fault == "in use":
            faults.enter_context((kernel_node.tree(first) / "workspace" / "file").open())
        else:
            first.close()
            (layer / "merged").rmdir()
        second = kernel_node.sandbox(awake=False)
        with capture_logs() as lines, pytest.raises(SandboxUnavailableError):
            second.wake()
    said = {line["event"]: line for line in lines}
    if fault == "in use":
        # The restored directory, and the sandbox's folder as its own user sees it, if it has one.
        told = said["sandbox_not_taken_up"]["detail"]
        assert re.fullmatch("[12] mounts of an earlier process are still in use.", told)
    else:
        assert (said["layer_failed"]["layer"], said["layer_failed"]["done"]) == (layer.name, "opened")
        assert "No such file or directory" in said["layer_failed"]["detail"]
        (layer / "merged").mkdir()
    assert str(kernel_node.data_dir) not in str(lines)
    first.close()
    assert read(second, "/workspace/file") == b"kept"


def test_a_sandbox_that_could_not_wake_does_once_the_cause_is_gone(node: Node) -> None:
    store = AwayStore(node.catalog().store)
    first = node.sandbox()
    sh(first, "mkdir a b; echo 1 > a/x; echo 2 > b/x")
    for name in ("a", "b"):
        restore(first, backup(first, f"/workspace/{name}"))
    first.close()
    archives = sorted((node.home("box") / "archives").iterdir())
    records = {row["archive_sha256"]: row["dir"] for row in json.loads(
        (node.home("box") / "sandbox.json").read_text())["entries"]}  # fmt: skip
    last = next(path for path in archives if records[path.stem] == "/workspace/b")
    last.rename(last.with_suffix(".away"))
    for archive in node.layout.cache.glob("*.sqsh"):
        archive.unlink()
    store.is_away = True
    again = node.sandbox(awake=False, catalog=node.catalog(store))
    for _ in range(2):
        with pytest.raises(SandboxUnavailableError):
            again.wake()
    last.with_suffix(".away").rename(last)
    assert sh(again, "cat a/x b/x") == "1\n2\n"


def test_destroy_leaves_nothing_but_the_backups(node: Node) -> None:
    box = node.sandbox("doomed")
    deep = "for i in $(seq 1100); do mkdir d; cd -P d; done"
    sh(box, f"mkdir data; echo 1 > data/x; cd /tmp; {deep}")
    handle = backup(box, "/workspace/data")
    restore(box, handle)
    with command(box, "echo started; exec sleep 1000") as running:
        box.destroy()
        assert isinstance(running.error(), ExecStoppedError)
    assert not node.home("doomed").exists()
    assert mountinfo.mounts_under(node.data_dir) == []
    assert node.catalog().sandboxes.find_state("default", "doomed") is None
    assert [path for path in (Hierarchies.find().v2 / node.layout.cgroup).iterdir() if path.is_dir()] == []
    box.destroy()
    heir = node.sandbox("doomed")
    assert sh(heir, "ls -A") == ""
    restore(heir, handle)
    assert sh(heir, "cat data/x") == "1\n"
    heir.destroy()


def test_a_sandbox_counts_as_empty_only_between_its_destruction_and_its_next_use(kernel_node: Node) -> None:
    box = kernel_node.sandbox(awake=False)
    assert not box.is_empty  # it may have to be recovered
    sh(box, "echo 1 > file")
    assert not box.is_empty
    box.close()
    assert not box.is_empty
    box.destroy()
    assert box.is_empty
    sh(box, "true")
    assert not box.is_empty


def test_a_sandbox_that_was_never_used_can_be_destroyed(kernel_node: Node) -> None:
    box = kernel_node.sandbox(awake=False)
    box.destroy()
    assert not kernel_node.home("box").exists()


def test_a_copy_over_a_tree_deeper_than_python_can_recurse_leaves_nothing(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir data; echo 1 > data/x")
    handle = backup(box, "/workspace/data")
    sh(box, "cd data; for i in $(seq 1500); do mkdir d; cd -P d; done")
    restore(box, handle, mode="copy")
    assert sh(box, "ls -A . data") == ".:\ndata\n\ndata:\nx\n"


def test_the_state_in_the_bucket_says_what_is_restored(kernel_node: Node) -> None:
    box = kernel_node.sandbox("stateful")
    handle = backup(box)
    restore(box, handle)
    restore(box, handle, "/tmp/copy", "copy")
    text = json.loads(kernel_node.catalog().store.get(keys.state("default", "stateful")).data)
    assert (text["id"], text["tenant"], text["version"]) == ("stateful", "default", 1)
    assert [(row["dir"], row["backupId"], row["mode"], row.get("driver")) for row in text["restored"]] == [
        ("/workspace", handle.id, "overlay", kernel_node.driver.value),
        ("/tmp/copy", handle.id, "copy", None),
    ]
    created_at = text["createdAt"]
    box.close()
    again = kernel_node.sandbox("stateful")
    restore(again, handle)
    text = json.loads(kernel_node.catalog().store.get(keys.state("default", "stateful")).data)
    assert text["createdAt"] == created_at
    again.destroy()


@pytest.mark.parametrize("home", ["ln -s /nowhere /home/sandbox", "ln -s /etc /home/sandbox", "touch /home/sandbox"])
def test_a_sandbox_wakes_with_a_link_or_a_file_in_place_of_its_home_directory(kernel_node: Node, home: str) -> None:
    box = kernel_node.sandbox()
    sh(box, f"rm -rf /home/sandbox; {home}")
    box.close()
    assert sh(kernel_node.sandbox(), "echo awake") == "awake\n"


def daemon(name: str) -> int:
    """The pid of the daemon that serves the only layer."""
    return next(pid for pid, found in children().items() if found == name)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("driver", "victim"),
    [(Driver.MIXED, "squashfuse_ll"), (Driver.FUSE, "squashfuse_ll"), (Driver.FUSE, "fuse-overlayfs")],
    indirect=["driver"],
)
def test_a_killed_daemon_ends_the_command_with_a_typed_error_and_loses_no_write(
    node: Node, victim: str, *, nested: bool
) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p data/inner; echo 1 > data/a; echo in > data/inner/i")
    inner = backup(box, "/workspace/data/inner")
    restore(box, backup(box, "/workspace/data"))
    if nested:
        restore(box, inner)
    script = "cd data; echo 2 > b; sync b; echo started; while :; do cat a > /dev/null 2>&1; done"
    with command(box, script) as running:
        os.kill(daemon(victim), signal.SIGKILL)
        assert isinstance(running.error(), MountLostError)
    assert wait_until(lambda: victim in children().values())
    assert sh(box, "cat data/a data/b; echo 3 > data/c; cat data/c") == "1\n2\n3\n"
    assert sh(box, "cat data/inner/i") == "in\n"
    box.close()
    assert sh(node.sandbox(), "cat data/a data/b data/c data/inner/i") == "1\n2\n3\nin\n"


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize(
    ("driver", "victim"), [(Driver.FUSE, "squashfuse_ll"), (Driver.FUSE, "fuse-overlayfs")], indirect=["driver"]
)
def test_an_open_upload_does_not_block_recovery_from_a_daemons_death(node: Node, victim: str, *, goes_on: bool) -> None:
    box = node.sandbox()
    sh(box, "mkdir data; echo 1 > data/file")
    restore(box, backup(box, "/workspace/data"))
    before = len(open_files())
    uploads = [box.open_file(path, None) for path in ("/workspace/data/new", "/tmp/new")]
    for upload in uploads:
        box.send(upload, b"part")
    killed = daemon(victim)
    os.kill(killed, signal.SIGKILL)
    if goes_on:
        assert wait_until(lambda: isinstance(failure(lambda: box.send(uploads[0], b"part")), HoldfastError))
    assert wait_until(lambda: victim in [name for pid, name in children().items() if pid != killed] and box.is_awake)
    assert sh(box, "ls data; cat data/file") == "file\n1\n"
    for upload in uploads:
        assert isinstance(failure(lambda upload=upload: box.send(upload, b"part")), ExecStoppedError)  # type: ignore[misc]
    assert wait_until(lambda: len(open_files()) <= before)
    box.close()
    assert not box.is_awake


def failure(act: Callable[[], object]) -> BaseException | None:
    """Returns the exception that the call raises, or None."""
    try:
        act()
    except Exception as e:
        return e
    return None


@pytest.mark.parametrize("mode", list(RestoreMode))
def test_open_transfers_are_ended_by_a_restore_and_do_not_block_it(kernel_node: Node, mode: RestoreMode) -> None:
    box = kernel_node.sandbox()
    (kernel_node.tree(box) / "workspace" / "large").write_bytes(os.urandom(4_000_000))
    handle = backup(box)
    restore(box, handle)
    reading = box.read_file("reading", "/workspace/large")
    next(reading)
    upload, hydrate = box.open_file("/workspace/upload", None), box.open_hydrate()
    box.send(upload, b"part")
    box.send(hydrate, b"\0" * 512)
    restore(box, handle, mode=mode)
    with pytest.raises(ExecStoppedError):
        list(reading)
    for transfer in (upload, hydrate):
        with pytest.raises(ExecStoppedError):
            box.send(transfer, b"more")
    assert sh(box, "ls -A") == "large\n"


def test_a_restore_stops_running_commands(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    write(box, "/workspace/file", "original")
    handle = backup(box)
    with command(box, "echo started; (while :; do echo x > background; done) & exec sleep 1000") as running:
        restore(box, handle)
        assert isinstance(running.error(), ExecStoppedError)
    assert sh(box, "ls -A") == "file\n"


def test_concurrent_calls_in_two_lanes_get_no_unexpected_errors(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir data; for i in $(seq 50); do echo $i > data/$i; done")
    handle = backup(box, "/workspace/data")
    stop = threading.Event()
    odd: list[BaseException] = []
    rounds: list[int] = []

    def work() -> None:
        while not stop.is_set():
            try:
                write(box, f"/workspace/data/{uuid.uuid4().hex}", "x")
                sh(box, "ls data > /dev/null; cat data/1")
                box.list_files("/workspace/data")
                rounds.append(1)
            except (ExecStoppedError, AssertionError):  # a restore stopped the command or removed its file
                continue
            except BaseException as e:
                odd.append(e)
                return

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        for mode in ("overlay", "copy", "overlay"):
            restore(box, handle, mode=mode)
            backup(box, "/workspace/data")
        assert wait_until(lambda: bool(rounds))
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)
    assert odd == []


def test_files_go_in_and_out_whole(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    data = os.urandom(3_000_000)
    transfer = box.open_file("/workspace/a/b/file", 0o750)
    for start in range(0, len(data), 700_000):
        box.send(transfer, data[start : start + 700_000])
        assert sh(box, "ls a/b") == ""
    box.commit(transfer)
    assert read(box, "/workspace/a/b/file") == data
    assert sh(box, "stat -c '%a %U' a/b/file") == "750 sandbox\n"
    write(box, "/workspace/a/b/file", b"")
    assert sh(box, "stat -c '%a %s' a/b/file; ls -A a/b") == "750 0\nfile\n"
    rows = box.list_files("/workspace/a/b")
    assert [(row.name, row.kind, row.size_bytes, row.mode) for row in rows] == [("file", "file", 0, 0o750)]
    box.delete_file("/workspace/a/b/file")
    with pytest.raises(FileNotFoundInSandboxError):
        read(box, "/workspace/a/b/file")


def test_an_aborted_upload_leaves_nothing(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    transfer = box.open_file("/workspace/file", None)
    box.send(transfer, b"x")
    assert box.stop(transfer)
    box.abort(transfer)
    assert sh(box, "ls -A") == ""
    with pytest.raises(ExecStoppedError):
        box.commit(transfer)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/etc/passwd", PathForbiddenError),
        ("/workspace/../etc/passwd", InvalidRequestError),
        ("workspace/x", InvalidRequestError),
        ("/workspace/x\0", InvalidRequestError),
        ("/workspace", NotARegularFileError),
        ("/workspace/none", FileNotFoundInSandboxError),
        ("/workspace/out/passwd", FileNotFoundInSandboxError),
        ("/workspace/fifo", NotARegularFileError),
    ],
)
def test_a_path_that_is_no_file_of_the_sandbox_is_refused(kernel_node: Node, path: str, error: type) -> None:
    box = kernel_node.sandbox()
    sh(box, "ln -s /etc out; mkfifo fifo; ln -s /nowhere dangling")
    with pytest.raises(error) as raised:
        read(box, path)
    assert type(raised.value) is error
    assert str(kernel_node.data_dir) not in str(raised.value)


def test_a_file_below_a_dangling_link_is_refused_with_a_typed_error(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "ln -s /nowhere dangling")
    with pytest.raises(NotARegularFileError):
        box.open_file("/workspace/dangling/file", None)


def test_persist_and_hydrate_carry_a_tree_over(kernel_node: Node) -> None:
    one, other = kernel_node.sandbox("one"), kernel_node.sandbox("other")
    sh(one, "mkdir -p src; echo x > src/a; ln -s a src/b; chmod 000 src/a")
    data = b"".join(one.persist(uuid.uuid4().hex))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert set(tar.getnames()) == {".", "./src", "./src/a", "./src/b"}
    transfer = other.open_hydrate()
    for start in range(0, len(data), 4096):
        other.send(transfer, data[start : start + 4096])
    other.commit(transfer)
    assert sh(other, "stat -c %a src/a; readlink src/b; chmod u+r src/a; cat src/a") == "0\na\nx\n"


def test_a_body_that_is_no_tar_archive_is_refused(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    transfer = box.open_hydrate()
    with pytest.raises(InvalidRequestError):
        for _ in range(100):
            box.send(transfer, os.urandom(10_000))
        box.commit(transfer)


def test_a_tar_archive_cannot_write_outside_the_workspace(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        for name in ("../../escape", "/etc/escape", "link/escape"):
            if name == "link/escape":
                link = tarfile.TarInfo("link")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc"
                tar.addfile(link)
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    transfer = box.open_hydrate()
    try:
        box.send(transfer, body.getvalue())
        box.commit(transfer)
    except InvalidRequestError:
        pass
    assert not Path("/etc/escape").exists()
    assert not (kernel_node.tree(box) / "escape").exists()


def test_a_commands_time_and_output_are_limited(kernel_node: Node) -> None:
    kernel_node.adjust(exec=ExecLimits(output_bytes=100_000))
    box = kernel_node.sandbox()
    with pytest.raises(ExecTimeoutError):
        run(box, "sleep", "60", timeout_ms=200)
    with pytest.raises(ExecOutputLimitError):
        run(box, "yes")
    assert box.info().commands == 0


def test_abandoning_a_commands_output_ends_it(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    events = box.exec("name", ExecRequest(argv=["sh", "-c", "echo started; exec sleep 1000"]))
    next(iter(events))
    assert box.info().commands == 1
    events.close()  # type: ignore[attr-defined]
    assert box.info().commands == 0
    with pytest.raises(FileNotFoundInSandboxError):
        run(box, "true", cwd="/workspace/none")


@pytest.mark.parametrize(
    ("argv", "code"),
    [(["true"], 0), (["sh", "-c", "exit 3"], 3), (["no-such-program"], 127), (["/etc"], 126), (["A=B"], 127),
     (["sh", "-c", "kill -9 $$"], 137)],
)  # fmt: skip
def test_exit_codes_are_those_of_a_shell(kernel_node: Node, argv: list[str], code: int) -> None:
    assert run(kernel_node.sandbox(), *argv).exit_code == code


THAW = "tests.support.programs.killed_while_frozen"


@pytest.fixture
def group(scratch: Path) -> Iterator[tuple[str, Cgroup]]:
    name = f"holdfast-test-{uuid.uuid4().hex[:12]}"
    made = Cgroup(f"{name}/one", memory_bytes=256 * 2**20, processes=20)
    made.prepare()
    yield name, made
    Cgroup.remove_tree(name)
    assert not (Hierarchies.find().v2 / name).exists()


def member(group: Cgroup, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(group.entry(["sh", "-c", script]), stdout=subprocess.PIPE, start_new_session=True)


def frozen(group: Cgroup) -> bool:
    return "frozen 1" in (group._path / "cgroup.events").read_text()


def test_a_frozen_group_stops_and_resumes(group: tuple[str, Cgroup]) -> None:
    _, one = group
    with member(one, "while :; do echo x; done") as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        assert wait_until(lambda: bool(process.stdout and process.stdout.read(1)))
        with one.frozen():
            assert frozen(one)
            while process.stdout.read(65536):
                pass
            assert process.stdout.read(1) in (None, b"")
        assert wait_until(lambda: not frozen(one))
        assert wait_until(lambda: bool(process.stdout and process.stdout.read(1)))
        one.kill()
        process.wait(60)


def test_a_guard_resumes_what_a_killed_process_had_paused(group: tuple[str, Cgroup]) -> None:
    name, one = group
    with member(one, "sleep 1000") as process:
        assert wait_until(lambda: process.pid in pids_in(f"{name}/one"))
        ended = crash(THAW, f"{name}/one")
        assert (ended.status, ended.stdout) == (-signal.SIGKILL, "frozen\n")
        assert wait_until(lambda: not frozen(one))
        one.kill()
        process.wait(60)


def test_a_guard_of_an_earlier_pause_never_ends_a_later_one(group: tuple[str, Cgroup]) -> None:
    name, one = group
    with member(one, "sleep 1000") as process:
        assert wait_until(lambda: process.pid in pids_in(f"{name}/one"))
        for _ in range(30):
            with one.frozen():
                pass
            with one.frozen():
                assert not wait_until(lambda: not frozen(one), timeout_s=0.03)
        with one.frozen():
            one.kill()
        process.wait(60)


def test_announcing_an_entry_moves_no_process(group: tuple[str, Cgroup]) -> None:
    before = Path("/proc/self/cgroup").read_text()
    announce_entry()
    assert Path("/proc/self/cgroup").read_text() == before


def test_limits_of_a_group_hold(group: tuple[str, Cgroup]) -> None:
    name, one = group
    assert one.limits() == Limits(memory_bytes=256 * 2**20, processes=20)
    bomb = "for i in $(seq 60); do sleep 100 & done; echo made $(jobs -p | wc -l)"
    with member(one, f"({bomb}) 2>/dev/null") as process:
        assert wait_until(lambda: process.poll() is not None or len(pids_in(f"{name}/one")) >= 19)
        assert len(pids_in(f"{name}/one")) <= 20
        one.kill()
        process.wait(60)
    with member(one, "head -c 600000000 /dev/zero | tail -c 500000000 | wc -c") as process:
        out, _ = process.communicate(timeout=120)
        assert b"500000000" not in out


def test_a_sandbox_says_which_limits_are_in_force_while_it_is_awake(kernel_node: Node) -> None:
    kernel_node.adjust(exec=ExecLimits(memory_bytes=2**28, processes=50))
    box = kernel_node.sandbox(awake=False)
    assert box.info().limits is None
    box.wake()
    assert box.info().limits == CommandLimits(memory_bytes=2**28, processes=50)
    group = Hierarchies.find().v1["pids"] / kernel_node.layout.sandbox_cgroup("default", box.id)
    (group / "pids.max").write_text("max")
    assert box.info().limits == CommandLimits(memory_bytes=2**28, processes=None)


def test_many_sandboxes_in_a_row_leave_no_descriptor(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    handle = backup(box)
    restore(box, handle)
    before = len(open_files())
    for mode in ("overlay", "copy", "overlay"):
        restore(box, handle, mode=mode)
        sh(box, "true")
        backup(box)
        with pytest.raises(NotARegularFileError):
            read(box, "/workspace")
    assert wait_until(lambda: len(open_files()) <= before)


def test_a_second_process_over_the_same_folder_takes_over(node: Node) -> None:
    first = node.sandbox()
    write(first, "/workspace/file", "1")
    restore(first, backup(first))
    other: LocalSandbox = node.sandbox("other")
    background = Background(lambda: sh(other, "echo other"))
    assert background.result() == "other\n"
    first.close()
    second = node.sandbox()
    assert read(second, "/workspace/file") == b"1"
